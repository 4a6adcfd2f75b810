"""Flamingo 3B, 9B and 80B (arXiv:2204.14198), the multimodal training as published.

Run:     mmjax train --config=experiments/flamingo/paper.py:3b --workdir=$WORKDIR
Expect:  not run. Its parameters are counted part by part against table 5 in tests/experiments/paper_configs_test.py.

It wants what the paper did not publish: the frozen language model and vision tower as run directories under
`pretrained/`, a tokenizer.json, and M3W, ALIGN, LTIP and VTP as ArrayRecord documents under `data/`.

Where it differs from the paper:
- vision: CLIP ViT-L/14 at 224 pixels, of which there are weights, stands in for the NFNet-F6 at 320, which
  `paper.py:3b_nfnet` has; the paper's own ablation (table 3) has the ViT at 64.9 against 70.7.
- language model: rotary in place of Chinchilla's Transformer-XL positions, whose projection is D^2 more per block.
- 9B: 32 blocks with cross-attention before every fourth. Table 4 prints 40, which with the 7.1B parameters of table 5
  cannot both be; 32 fits them.
- resampler: heads of 128. Table 4 implies 1536 / 16 = 96, but only an inner width of 2048 gives the 194M of table 5.
- cross-attention: keys and values are projected from the resampler's 1536. The 1.6B and 10B of table 5 would need
  visual tokens as wide as the language model.
- loss: a weighted mean over the tokens of each data set, where the paper sums over a sequence.
- batch sizes are those of the 3B ablations, for 80B three times those: they divide over the paper's 1,536 chips, 16 a
  model. The final runs' are not in the paper, nor are AdamW's betas, which are its defaults.
- images are not flipped or jittered in colour; padding has CLIP's mean pixel.
- pairs and videos are cut at 64 tokens (ours; LTIP averages 20).
"""

import ml_collections

VARIANTS = {
    # Blocks, width and heads of the language model; cross-attention before every n-th; a mesh; times the rows of the 3B
    # ablations. The smallest data set has 64 rows, for 80B 192, so that these meshes take 64, 64 and 3,072 devices at
    # most. Heads of 80B divide by 16, and widths by powers of two: its mesh takes 1,024 devices as well as 1,536.
    "3b": dict(num_layers=24, embed_dim=2048, num_heads=16, every=1, mesh=dict(fsdp=-1), rows=1),
    "9b": dict(num_layers=32, embed_dim=4096, num_heads=32, every=4, mesh=dict(fsdp=-1), rows=1),
    "80b": dict(num_layers=80, embed_dim=8192, num_heads=64, every=7, mesh=dict(data=-1, fsdp=2, model=16), rows=3),
}
VOCAB = 32_000
SPECIALS = ("<pad>", "<BOS>", "<EOS>", "<EOC>", "<image>")
NFNET = "_nfnet"


def get_config(variant: str = "3b") -> ml_collections.ConfigDict:
    size, is_nfnet = variant.removesuffix(NFNET), variant.endswith(NFNET)
    if size not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(VARIANTS)}, each also with {NFNET!r}")
    v, tower = VARIANTS[size], nfnet_f6() if is_nfnet else vit_l14()
    c = ml_collections.ConfigDict()
    c.system = "flamingo"
    c.model = dict(vision=tower, resampler=resampler(3072 if is_nfnet else 1024), lm=language_model(v),
                   xattn=cross_attention(v), xattn_every=v["every"])
    c.init_from = dict(vision=f"pretrained/{'nfnet_f6' if is_nfnet else 'clip_vit_l14'}",
                       lm=f"pretrained/chinchilla_{size}")
    c.rules = (("(vision|lm)/.*", "frozen"), ("resampler/.*", "resampler"), ("xattn/.*", "main"))
    c.groups = dict(main=dict(), resampler=dict(weight_decay=0.0))
    c.frozen_dtype = "bfloat16"
    c.data = data(v["rows"], tower["image_size"])
    c.optimizer = dict(name="adamw", lr=1e-4, schedule="constant", warmup_steps=5_000, weight_decay=0.1, clip_norm=1.0)
    c.total_steps = 500_000
    c.mesh = v["mesh"]
    c.log_every = 100
    c.checkpoint_every = 2_000
    return c


def nfnet_f6() -> dict:
    return dict(image_size=320, depths=(7, 14, 42, 21), widths=(256, 512, 1536, 1536), dtype="bfloat16")


def vit_l14() -> dict:
    return dict(image_size=224, patch_size=14, num_layers=24,
                block=dict(embed_dim=1024, num_heads=16, mlp_dim=4096, activation="quick_gelu", dtype="bfloat16"))


def resampler(input_dim: int) -> dict:
    return dict(input_dim=input_dim, embed_dim=1536, num_latents=64, num_layers=6, num_heads=16, head_dim=128,
                mlp_dim=6144, activation="squared_relu", num_frames=8, dtype="bfloat16")


def language_model(v: dict) -> dict:
    block = dict(embed_dim=v["embed_dim"], num_heads=v["num_heads"], mlp_dim=4 * v["embed_dim"], activation="gelu",
                 norm="rms", use_bias=False, dtype="bfloat16")
    return dict(vocab_size=VOCAB, num_layers=v["num_layers"], block=block, positions="rotary", max_positions=2048)


def cross_attention(v: dict) -> dict:
    return dict(embed_dim=v["embed_dim"], visual_dim=1536, num_heads=v["num_heads"], head_dim=128,
                mlp_dim=4 * v["embed_dim"], activation="squared_relu", dtype="bfloat16")


def data(rows: int, size: int) -> dict:
    """Four data sets, whose weighted gradients add up in every update (section 2.4); `rows` times those of the 3B."""
    image = dict(size=size, policy="pad", fill=(123, 117, 104), video=dict(rate=1.0))      # videos at 1 fps (B.1.2)
    return dict(
        tokenizer="pretrained/chinchilla_tokenizer", specials=SPECIALS, workers=8,
        sets=dict(
            m3w=data_set("m3w", batch_size=256 * rows, loss_weight=1.0, image=image, seq_len=256, images_per_row=5,
                         too_long="window", template_options=dict(bos="<BOS>", p_next=0.5)),
            align=pairs("align", batch_size=512 * rows, loss_weight=0.2, image=image),
            ltip=pairs("ltip", batch_size=512 * rows, loss_weight=0.2, image=image),
            vtp=pairs("vtp", batch_size=64 * rows, loss_weight=0.03, image=image, frames=8),
        ))


def pairs(name: str, **fields) -> dict:
    """One image or video and its text, with a space before the text half of the time (A.3.2)."""
    options = dict(bos="<BOS>", eos="<EOS>", prepend_space=0.5)
    return data_set(name, seq_len=64, images_per_row=1, template_options=options, **fields)


def data_set(name: str, **fields) -> dict:
    return dict(sources=(dict(path=f"data/{name}"),), template="flamingo", **fields)
