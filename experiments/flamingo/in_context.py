"""Learning in context: Flamingo binds made-up words to drawn classes that it has never seen before.

Run:     mmjax train --config=experiments/flamingo/in_context.py --workdir=runs/in_context
Expect:  37 processor-minutes, about 20 minutes on two cores. Named right at 0 / 1 / 2 / 4 shots per class, of classes
         never seen: pairs of shape and colour 28 / 88 / 89 / 94 %, invented characters 22 / 78 / 78 / 78 % (chance
         25 %; when the query's picture is swapped for one of another class, 1 to 12 %).

Every page shows a few classes several times, each with a made-up word that stands for it on this page only, and ends in
one more picture to name. The classes of the evaluation pages appear in no training page, so nothing but the page itself
can tell their names: with no picture of them before the query a guess is right once in four. Held out are pairs of
shape and colour, and invented characters.

Cross-attention hands every word its own picture, so one step of self-attention, "which word came with a picture like
mine?", is all there is to find. It is found on the coloured shapes, which captions have taught the tower to see, and
then teaches it to tell characters apart. Everything trains, as there is no published model of this size to start from;
so the gates start open: from 0 they opened too slowly for a picture to be matched, and the words stayed a guess.
"""

import ml_collections

FOLDER = "data_cache/bindings"
SEQ_LEN = 256


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.system = "flamingo"
    c.model = model()
    c.data = dict(
        sets=dict(
            compositions=data_set("train_compositions", batch_size=6),
            glyphs=data_set("train_glyphs", batch_size=6),
            captions=data_set("captions", batch_size=2, loss_weight=0.5),
        ),
        prepare=dict(bindings=dict(folder=FOLDER, options=dict(prompt=""))),
    )
    c.rules = (("resampler/.*", "no_decay"), (".*", "main"))
    c.groups = dict(main=dict(), no_decay=dict(weight_decay=0.0))
    c.optimizer = dict(lr=2e-3, schedule="cosine", end_lr=1e-4, warmup_steps=100, b2=0.98, weight_decay=0.01)
    c.total_steps = 4000
    c.log_every = 50
    c.checkpoint_every = 1000
    c.eval_every = 1000
    c.evals = tuple(dict(name=name, kind="classification", data=f"{FOLDER}/{name}.array_record", selection="page",
                         shots=(0, 4, 8, 16)) for name in ("held_out_compositions", "held_out_glyphs", "seen_glyphs"))
    return c


def data_set(name: str, batch_size: int, loss_weight: float = 1.0) -> dict:
    return dict(sources=(dict(path=f"{FOLDER}/{name}.array_record"),), seq_len=SEQ_LEN, batch_size=batch_size,
                images_per_row=32, image=dict(size=32), template="flamingo", loss_weight=loss_weight)


def model() -> dict:
    block = dict(embed_dim=64, num_heads=2, mlp_dim=256, norm="rms", use_bias=False, activation="swiglu")
    return dict(
        vision=dict(image_size=32, patch_size=8, num_layers=2, remat="none",
                    block=dict(embed_dim=64, num_heads=4, mlp_dim=256, activation="quick_gelu")),
        resampler=dict(input_dim=64, embed_dim=64, num_latents=4, num_layers=1, num_heads=4, head_dim=16, mlp_dim=256,
                       num_frames=1),
        lm=dict(vocab_size=262, num_layers=2, block=block, positions="rotary", max_positions=SEQ_LEN,
                scale_embedding=True, remat="none"),
        xattn=dict(embed_dim=64, visual_dim=64, num_heads=2, head_dim=32, mlp_dim=256, gate_init=1.0),
        xattn_every=1,
    )
