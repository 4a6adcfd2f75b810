"""Tiny CLIP: a vision and a text tower learn which caption belongs to which drawn scene.

Run:     mmjax train --config=experiments/clip/tiny.py --workdir=runs/clip_tiny
         --config=experiments/clip/tiny.py:sigmoid for SigLIP's loss
Expect:  1,000 steps in 14 CPU-minutes on two shared cores. Of 64 combinations, one of twelve never seen is named right
         in 23 % of the pictures (chance 1.6 %), seen ones in 56 %; the right caption of a scene with an unseen one is
         the nearest of 328 in 80 %, among the ten nearest in 99.8 % (chance 0.3 %). The sigmoid form was not run.

Twelve of the 64 combinations of shape and colour are never shown in training. Zero-shot classification asks which of
all 64 a picture of one of them shows, with an ensemble of prompts; retrieval is of scenes that contain one.
"""

import math

import ml_collections

FOLDER = "data_cache/captions"
TEMPLATES = ("a big {}", "a small {} on the left", "a small {} on the right", "a small {} at the top",
             "a small {} at the bottom")
TEXT_LEN = 56


def get_config(loss: str = "softmax") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.system = "clip"
    c.model = model(loss)
    c.data = dict(
        sets=dict(pairs=dict(
            sources=(dict(path=f"{FOLDER}/train.array_record"),), batch_size=128, seq_len=TEXT_LEN, images_per_row=1,
            image=dict(size=32), template="clip")),
        prepare=dict(captions=dict(folder=FOLDER)))
    c.rules = (("log_scale", "scale"), ("bias", "no_decay"), (".*(bias|scale)", "no_decay"), (".*", "main"))
    c.groups = dict(main=dict(), no_decay=dict(weight_decay=0.0),
                    scale=dict(weight_decay=0.0, max_value=math.log(100)))
    if loss == "softmax":
        c.rules = tuple(rule for rule in c.rules if rule[0] != "bias")
    c.optimizer = dict(lr=1e-3, schedule="cosine", end_lr=1e-5, warmup_steps=100, b2=0.98, eps=1e-6, weight_decay=0.2)
    c.total_steps = 1000
    c.log_every = 50
    c.checkpoint_every = 0
    c.evals = (
        dict(name="unseen", kind="zero_shot", data=f"{FOLDER}/looks", templates=TEMPLATES, labels=looks()),
        dict(name="seen", kind="zero_shot", data=f"{FOLDER}/known", templates=TEMPLATES, labels=looks()),
        dict(name="scenes", kind="retrieval", data=f"{FOLDER}/scenes"),
    )
    return c


def looks() -> tuple[str, ...]:
    from mmjax.data.first_light.captions import LOOKS
    return LOOKS


def model(loss: str) -> dict:
    """OpenAI's form at a small size; the byte tokenizer's end token has id 258."""
    width, embed_dim = 96, 64
    block = dict(embed_dim=width, num_heads=4, mlp_dim=4 * width, activation="quick_gelu")
    scale = dict(init_scale=10.0) if loss == "sigmoid" else {}
    return dict(
        loss=loss, **scale,
        vision=dict(image_size=32, patch_size=8, num_layers=3, block=block, remat="none"),
        head=dict(input_dim=width, output_dim=embed_dim),
        text=dict(vocab_size=262, max_positions=TEXT_LEN, num_layers=3, block=block, pool="eos", eos_id=258,
                  output_dim=embed_dim, remat="none"))
