"""Learning in context: KOSMOS-1 binds made-up words to drawn characters that it has never seen before.

Run:     mmjax train --config=experiments/kosmos1/in_context.py --workdir=runs/in_context
Expect:  not learned yet. After 1,250 steps of "compositions" (eight minutes on two cores) the model sees (94 % of the
         caption tokens) and copies one of the page's names, but which one is still chance: 22 % at 4 shots per class.

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


def get_config(kind: str = "compositions") -> ml_collections.ConfigDict:
    """`kind` is "glyphs", invented characters, or "compositions", unseen pairs of shape and colour."""
    folder = f"{FOLDER}_{kind}"
    classes = dict(compositions=dict(train_classes=48, held_out_classes=16), glyphs=dict())[kind]
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
    pages = dict(sources=(dict(path=f"{folder}/train.array_record"),), seq_len=SEQ_LEN, batch_size=8, images_per_row=28,
                 image=dict(size=32), template="kosmos1", template_options=dict(num_slots=NUM_LATENTS))
    # Pages in words alone teach to find and copy a name; they are cheap, and help to do the same from pictures.
    text = dict(sources=(dict(path=f"{folder}/text.array_record"),), seq_len=SEQ_LEN, batch_size=2, loss_weight=0.25,
                template="language")
    sets = dict(pages=pages, text=text)
    if kind == "compositions":      # what the pictures show, of training classes, so that the tower learns to see
        sets["captions"] = pages | dict(sources=(dict(path=f"{folder}/captions.array_record"),), batch_size=2,
                                        loss_weight=0.5)
    c.data = dict(sets=sets,
                  prepare=dict(bindings=dict(
                      folder=folder, options=dict(kind=kind, prompt="", pages=8_000, **classes))))
    c.optimizer = dict(lr=1.5e-3, schedule="cosine", end_lr=5e-5, warmup_steps=200, b2=0.98, weight_decay=0.01)
    c.total_steps = 4000
    c.log_every = 100
    c.checkpoint_every = 1000
    c.eval_every = 1000
    c.evals = tuple(dict(name=name, kind="classification", data=f"{folder}/{name}.array_record", selection="page",
                         shots=(0, 4, 8, 16)) for name in ("held_out", "seen"))
    return c
