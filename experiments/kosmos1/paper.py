"""KOSMOS-1 (arXiv:2302.14045): pre-training on text, captions and interleaved pages, then language-only instructions.

Run:     mmjax train --config=experiments/kosmos1/paper.py --workdir=$WORKDIR
Expect:  not run. Its parameters are counted part by part in tests/experiments/paper_configs_test.py.

It wants CLIP ViT-L/14 as a run directory and the tokenizer under `pretrained/`, and the corpora as ArrayRecord
documents under `data/`.

Where it differs from the paper, or the paper is silent:
- dropout is on the embeddings and residual branches, not on attention weights.
- clip_norm, eps, the connector's form and the L2-normalised features are those of the authors' code for KOSMOS-2.
- rows per update, and the rate and length of the second stage, are from tables that we know second-hand.
- the paper takes one mean over all discrete tokens of an update. Here every set has its own mean and a fixed weight,
  its share of those tokens, counting 15 for a caption and five images in an interleaved row.
- a document longer than a row is cut, where the paper goes on with it in the next row.
- weights of the text corpora are shares of documents here, of tokens in table 20; those of the caption sets are ours.
- 256 instructions per update are taken as 32 rows of about eight.
"""

import math

import ml_collections

NUM_LAYERS, SEQ_LEN, NUM_LATENTS = 24, 2048, 64
SPECIALS = ("<pad>", "<s>", "</s>", "<image>", "</image>")
TEXT = {        # table 20, per cent
    "openwebtext2": 21.8, "cc_2021_04": 17.7, "books3": 16.2, "cc_2020_50": 14.7, "pile_cc": 10.6, "realnews": 10.2,
    "wikipedia": 5.4, "bookcorpus2": 1.1, "pg19": 1.0, "cc_stories": 1.0, "nih": 0.2,
}
INSTRUCTIONS = {"unnatural_instructions": 68_478, "flan_v2": 54_000}


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.stages = ("pretraining", "instructions")
    c.pretraining = stage(
        init_from=dict(vision="pretrained/clip_vit_l14"), lr=2e-4, total_steps=300_000,
        text=text(TEXT, rows=256), captions=captions(6144), interleaved=interleaved(rows=128))
    c.instructions = stage(
        init_from={"": "pretraining"}, lr=2e-5, total_steps=10_000,
        instructions=text(INSTRUCTIONS, rows=32), text=text(TEXT, rows=32), captions=captions(768),
        interleaved=interleaved(rows=16))
    return c


def stage(init_from: dict, lr: float, total_steps: int, **sets) -> dict:
    """One stage; `sets` are pairs of a data set and the tokens it predicts in an update."""
    total = sum(targets for _, targets in sets.values())
    return dict(
        system="kosmos1",
        model=model(),
        init_from=init_from,
        # All of the vision tower but its last layer is frozen (section 3.2).
        rules=(("vision/last_blocks/.*", "main"), ("vision/.*", "frozen"), (".*", "main")),
        frozen_dtype="bfloat16",
        data=dict(tokenizer="pretrained/kosmos_tokenizer", specials=SPECIALS, workers=8,
                  sets={name: values | dict(loss_weight=targets / total) for name, (values, targets) in sets.items()}),
        optimizer=dict(name="adamw", lr=lr, schedule="linear", end_lr=0.0, warmup_steps=375, b1=0.9, b2=0.98, eps=1e-6,
                       weight_decay=0.01, clip_norm=2.0),
        total_steps=total_steps,
        mesh=dict(fsdp=-1),         # no more devices than the smallest set has rows; nothing splits the odd vocabulary
        log_every=100,
        checkpoint_every=2_000,
    )


def model() -> dict:
    return dict(
        vision=dict(image_size=224, patch_size=14, num_layers=24, num_last_layers=1,
                    block=dict(embed_dim=1024, num_heads=16, mlp_dim=4096, activation="quick_gelu", dtype="bfloat16")),
        connector=dict(input_dim=1024, embed_dim=2048, num_latents=NUM_LATENTS, num_heads=32, dtype="bfloat16"),
        lm=dict(
            vocab_size=64_007, num_layers=NUM_LAYERS, positions="xpos", rotary_layout="interleaved",
            xpos_scale_base=512.0, max_positions=SEQ_LEN, tie_embeddings=True, scale_embedding=True, embed_dropout=0.1,
            block=dict(embed_dim=2048, num_heads=32, mlp_dim=8192, activation="gelu", sub_norm=True, dropout=0.1,
                       init_gain=math.sqrt(math.log(2 * NUM_LAYERS)), dtype="bfloat16")),
    )


def text(shares: dict[str, float], rows: int) -> tuple[dict, int]:
    return data_set(shares, batch_size=rows, template="language"), rows * SEQ_LEN


def captions(number: int) -> tuple[dict, int]:
    """Captions of 81 tokens, 66 of them the image's, 24 to a row."""
    shares = dict(laion2b=1.0, laion400m=1.0, coyo700m=1.0, conceptual_captions=1.0)        # shares are ours
    return data_set(shares, batch_size=number // 24, images_per_row=24, **images()), number * 15


def interleaved(rows: int) -> tuple[dict, int]:
    """Pages with at most five images; half of those with one are left out."""
    values = data_set(dict(interleaved=1.0), batch_size=rows, images_per_row=8, max_images=5,
                      **images(keep_single_image=0.5))
    return values, rows * (SEQ_LEN - 5 * (NUM_LATENTS + 2))


def images(**options) -> dict:
    return dict(template="kosmos1", template_options=dict(num_slots=NUM_LATENTS) | options,
                image=dict(size=224, policy="center_crop"))


def data_set(shares: dict[str, float], **fields) -> dict:
    sources = tuple(dict(path=f"data/{name}", weight=float(weight)) for name, weight in shares.items())
    return dict(sources=sources, seq_len=SEQ_LEN, **fields)
