"""Tiny KOSMOS-1: one decoder learns text, captions and interleaved pages together, from nothing.

Run:     mmjax train --config=experiments/kosmos1/tiny.py --workdir=runs/kosmos1_tiny
Expect:  ten CPU-minutes; held-out digits 88.5, 88, 87 and 86 % at 0, 2, 4 and 8 shots, 1 % with swapped images.

As in the full-size run (experiments/kosmos1/paper.py) an update adds text, caption and interleaved rows; Sub-LN with
its initial gain, xPos, the embedding scale and the attentive pool are as published. Only the sizes are small, and the
vision tower, which has no published weights to start from at this size, trains whole.
"""

import math

import ml_collections

FOLDER = "data_cache/first_light"
SEQ_LEN = 256
NUM_LATENTS = 2         # visual tokens per image
NUM_LAYERS = 3


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.system = "kosmos1"
    c.model = dict(
        vision=dict(image_size=32, patch_size=8, num_layers=3, remat="none",
                    block=dict(embed_dim=64, num_heads=4, mlp_dim=256, activation="quick_gelu")),
        connector=dict(input_dim=64, embed_dim=96, num_latents=NUM_LATENTS, num_heads=4),
        lm=dict(
            vocab_size=262, num_layers=NUM_LAYERS, positions="xpos", rotary_layout="interleaved",
            max_positions=SEQ_LEN, scale_embedding=True, remat="none",
            block=dict(embed_dim=96, num_heads=6, mlp_dim=384, sub_norm=True,
                       init_gain=math.sqrt(math.log(2 * NUM_LAYERS)))),
    )
    # The weights keep the published shares of 0.5M text, 0.5M caption and 0.2M interleaved tokens per update.
    c.data = dict(
        prepare=dict(first_light=dict(folder=FOLDER)),
        sets=dict(
            text=data_set(dict(text=1), batch_size=4, loss_weight=0.5, template="language"),
            captions=data_set(dict(digits_pairs=4, scenes_pairs=1, photos_pairs=0.5), batch_size=8, loss_weight=0.5,
                              images_per_row=14, template="kosmos1", template_options=dict(num_slots=NUM_LATENTS)),
            interleaved=data_set(dict(digits_pages=4, scenes_pages=1, photos_pages=0.5), batch_size=4, loss_weight=0.2,
                                 images_per_row=14, template="kosmos1", template_options=dict(num_slots=NUM_LATENTS)),
        ),
    )
    c.optimizer = dict(lr=2e-3, schedule="linear", warmup_steps=50, b2=0.98, eps=1e-6, weight_decay=0.01, clip_norm=2.0)
    c.total_steps = 800
    c.log_every = 20
    c.checkpoint_every = 200
    c.evals = (dict(name="digits", kind="classification", data=f"{FOLDER}/digits", num_queries=200),)
    return c


def data_set(weights: dict[str, float], **fields) -> dict:
    sources = tuple(dict(path=f"{FOLDER}/train/{name}.array_record", weight=w) for name, w in weights.items())
    return dict(sources=sources, seq_len=SEQ_LEN, image=dict(size=32), **fields)
