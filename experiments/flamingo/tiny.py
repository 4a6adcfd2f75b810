"""Tiny Flamingo: a language model learns text, is frozen, and learns to read images by gated cross-attention.

Run:     mmjax train --config=experiments/flamingo/tiny.py --workdir=runs/flamingo_tiny
Expect:  5:30 minutes of CPU time on two cores; held-out digits 85 % (1 % with swapped images) at 0 shots, 84 % at 4.
         Other orders of the data and roundings of the loss reached 83.5 to 89 %.

The default data set needs no download: scanned digits and photographs that scikit-learn carries, and drawn scenes.
Every rule of the full-size run is here (experiments/flamingo/paper.py); only the sizes are small, and the vision tower,
which has no published weights to start from at this size, trains too.
"""

import ml_collections

FOLDER = "data_cache/first_light"
SEQ_LEN = 256


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.stages = ("language", "flamingo")
    c.language = language_stage()
    c.flamingo = flamingo_stage()
    return c


def language_stage() -> dict:
    """The language model learns the text of captions, questions and pages."""
    return dict(
        system="language",
        model=dict(lm=language_model()),
        data=data(text=data_set(dict(text=1), batch_size=8, template="language")),
        optimizer=dict(lr=2e-3, schedule="cosine", end_lr=2e-4, warmup_steps=50, b2=0.98, weight_decay=0.01),
        total_steps=250,
        log_every=20,
        checkpoint_every=0,
    )


def flamingo_stage() -> dict:
    """Resampler, gated cross-attention and the small vision tower learn; the language model stays as it is."""
    images = dict(images_per_row=14, template="flamingo")
    return dict(
        system="flamingo",
        model=flamingo_model(),
        data=data(
            pages=data_set(dict(digits_pages=4, scenes_pages=1, photos_pages=0.5), batch_size=10, loss_weight=1.0,
                           **images),
            pairs=data_set(dict(digits_pairs=4, scenes_pairs=1, photos_pairs=0.5), batch_size=4, loss_weight=0.2,
                           **images, template_options=dict(eos="</s>")),
        ),
        init_from=dict(lm="language"),
        rules=(("lm/.*", "frozen"), ("resampler/.*", "no_decay"), (".*", "main")),
        groups=dict(main=dict(), no_decay=dict(weight_decay=0.0)),
        optimizer=dict(lr=1e-3, schedule="constant", warmup_steps=50, b2=0.98, weight_decay=0.1),
        frozen_dtype="float32",
        total_steps=600,
        log_every=20,
        checkpoint_every=200,
        evals=(dict(name="digits", kind="classification", data=f"{FOLDER}/digits", num_queries=200),),
    )


def language_model() -> dict:
    block = dict(embed_dim=96, num_heads=4, mlp_dim=256, norm="rms", use_bias=False, activation="swiglu")
    return dict(vocab_size=262, num_layers=3, block=block, positions="rotary", max_positions=SEQ_LEN,
                scale_embedding=True, remat="none")


def flamingo_model() -> dict:
    return dict(
        vision=dict(image_size=32, patch_size=8, num_layers=3, remat="none",
                    block=dict(embed_dim=64, num_heads=4, mlp_dim=256, activation="quick_gelu")),
        resampler=dict(input_dim=64, embed_dim=64, num_latents=8, num_layers=2, num_heads=4, head_dim=16, mlp_dim=256,
                       num_frames=1),
        lm=language_model(),
        xattn=dict(embed_dim=96, visual_dim=64, num_heads=4, head_dim=24, mlp_dim=384),
        xattn_every=1,
    )


def data(**sets) -> dict:
    return dict(sets=sets, prepare=dict(first_light=dict(folder=FOLDER)))


def data_set(weights: dict[str, float], **fields) -> dict:
    sources = tuple(dict(path=f"{FOLDER}/train/{name}.array_record", weight=w) for name, w in weights.items())
    return dict(sources=sources, seq_len=SEQ_LEN, image=dict(size=32), **fields)
