"""Learning in context: KOSMOS-1 binds made-up words to drawn characters that it has never seen before.

Run:     mmjax train --config=experiments/kosmos1/in_context.py --workdir=runs/in_context
Expect:  not run yet.

Every page shows a few invented characters several times, each with a made-up word that stands for it on this page only,
and ends in one more picture to name. The characters of the evaluation pages appear in no training page, so nothing but
the page itself can tell their names: with no picture of them before the query a guess is right once in four.
"""

import math

import ml_collections

FOLDER = "data_cache/bindings"
SEQ_LEN = 256
NUM_LATENTS = 1
NUM_LAYERS = 4


def get_config(kind: str = "glyphs") -> ml_collections.ConfigDict:
    """`kind` is "glyphs", invented characters, or "compositions", unseen pairs of shape and colour."""
    folder = f"{FOLDER}_{kind}"
    classes = dict(compositions=dict(train_classes=48, held_out_classes=16), glyphs=dict())[kind]
    c = ml_collections.ConfigDict()
    c.system = "kosmos1"
    c.model = dict(
        vision=dict(image_size=32, patch_size=8, num_layers=3, remat="none",
                    block=dict(embed_dim=64, num_heads=4, mlp_dim=256, activation="quick_gelu")),
        connector=dict(input_dim=64, embed_dim=128, num_latents=NUM_LATENTS, num_heads=4),
        lm=dict(
            vocab_size=262, num_layers=NUM_LAYERS, positions="xpos", rotary_layout="interleaved",
            max_positions=SEQ_LEN, scale_embedding=True, remat="none",
            block=dict(embed_dim=128, num_heads=8, mlp_dim=512, sub_norm=True,
                       init_gain=math.sqrt(math.log(2 * NUM_LAYERS)))),
    )
    pages = dict(sources=(dict(path=f"{folder}/train.array_record"),), seq_len=SEQ_LEN, batch_size=8, images_per_row=28,
                 image=dict(size=32), template="kosmos1", template_options=dict(num_slots=NUM_LATENTS))
    c.data = dict(sets=dict(pages=pages),
                  prepare=dict(bindings=dict(folder=folder, options=dict(kind=kind, prompt="", pages=12_000, **classes))))
    c.optimizer = dict(lr=1e-3, schedule="cosine", end_lr=5e-5, warmup_steps=200, b2=0.98, weight_decay=0.01)
    c.total_steps = 6000
    c.log_every = 100
    c.checkpoint_every = 1000
    c.eval_every = 1000
    c.evals = tuple(dict(name=name, kind="classification", data=f"{folder}/{name}.array_record", selection="page",
                         shots=(0, 4, 8, 16)) for name in ("held_out", "seen"))
    return c
