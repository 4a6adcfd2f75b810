"""Names of timm's vision towers: EVA and EVA-02, SigLIP's ViT, NFNet. open_clip has them below `visual.trunk.`.

Entries are relative to a part, tower or head; see `transformers_vision`.
"""

from mmjax.checkpoint.convert.forms import batched, flat, fused, image_kernel, linear, single, token
from mmjax.checkpoint.convert.table import Entry, dense, norm, under
from mmjax.checkpoint.convert.transformers_vision import Entries, blocks, dense_patches
from mmjax.parts.nfnet import NFNetConfig
from mmjax.parts.vision_head import VisionHeadConfig
from mmjax.parts.vit import ViTConfig

column = single(lambda w, _: w.reshape(-1), lambda a: a.reshape(-1, 1, 1, 1))                  # [O, 1, 1, 1]
pixel_linear = single(lambda w, _: w[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])           # a 1 x 1 convolution


def eva_tower(c: ViTConfig) -> Entries:
    """`Eva` but for its head. With a second norm in the feed-forward network, q, k, v and the gate are kept apart."""
    block = c.block
    apart = bool(block.mlp_sub_norm)
    kernels = tuple(f"attention/{name}/kernel" for name in "qkv")
    attention = ((*dense("attention/q", "q_proj"), *dense("attention/k", "k_proj", use_bias=False),
                  *dense("attention/v", "v_proj")) if apart else
                 (Entry(kernels, "qkv.weight", fused(linear())), Entry("attention/q/bias", "q_bias", flat),
                  Entry("attention/v/bias", "v_bias", flat)))
    attention += dense("attention/out", "proj", inputs=2)
    if block.sub_norm:
        attention += norm("attention/inner_norm", "norm")
    layer = (*norm("attention_norm", "norm1"), *under("", "attn.", attention), *norm("mlp_norm", "norm2"),
             *under("mlp/", "mlp.", _eva_mlp(block.activation, apart)))
    final = norm("final_norm", "norm") if c.final_norm else ()
    return (Entry("class_embed", "cls_token", token), Entry("position_embed", "pos_embed", batched),
            *dense_patches(c, "patch_embed.proj"), *final, *blocks(c, "blocks.{layer}.", layer))


def eva_head(c: VisionHeadConfig) -> Entries:
    """`fc_norm` and `head` of `Eva`, as far as there are any."""
    return (*(norm("norm", "fc_norm") if c.norm else ()), *(dense("proj", "head") if c.output_dim else ()))


def vit_tower(c: ViTConfig) -> Entries:
    """`VisionTransformer` in SigLIP's form but for its pooling."""
    layer = (*norm("attention_norm", "norm1"), *_fused("attention/", "attn.qkv", "qkv"),
             *dense("attention/out", "attn.proj", inputs=2), *norm("mlp_norm", "norm2"), *_mlp("mlp/", "mlp."))
    return (Entry("position_embed", "pos_embed", batched), *dense_patches(c, "patch_embed.proj"),
            *norm("final_norm", "norm"), *blocks(c, "blocks.{layer}.", layer))


def siglip_head() -> Entries:
    """Its pooling, under `attn_pool.`."""
    pool = (Entry("latent", "latent", token), *dense("attention/q", "q"), *_fused("attention/", "kv", "kv"),
            *dense("attention/out", "proj", inputs=2), *norm("norm", "norm"), *_mlp("mlp/", "mlp."))
    return under("pool/", "attn_pool.", pool)


def nfnet_tower(c: NFNetConfig) -> Entries:
    """`NormFreeNet` in the form of DeepMind's weights, but for its classifier."""
    stem = tuple(e for i in range(4) for e in _standard_conv(f"stem_{i}", f"stem.conv{i + 1}"))
    names = (("conv1", "conv1"), ("conv2", "conv2"), ("conv3", "conv2b"), ("conv4", "conv3"))
    block = (*(e for ours, theirs in names for e in _standard_conv(ours, theirs)), Entry("gain", "skipinit_gain"),
             *(e for ours, theirs in (("down", "fc1"), ("up", "fc2")) for e in (
                 Entry(f"se/{ours}/kernel", f"attn_last.{theirs}.weight", pixel_linear),
                 Entry(f"se/{ours}/bias", f"attn_last.{theirs}.bias"))))
    widths, stages = (c.stem_width, *c.widths), ()
    for i, depth in enumerate(c.depths):
        shortcut = _standard_conv("shortcut", "downsample.conv") if i or widths[0] != widths[1] else ()
        stages += under(f"stage{i}_first/", f"stages.{i}.0.", (*block, *shortcut))
        if depth > 1:
            stages += under(f"stage{i}_rest/", f"stages.{i}." + "{block}.", block, block=range(1, depth))
    return (*stem, *stages, *_standard_conv("last_conv", "final_conv"))


def _eva_mlp(activation: str, apart: bool) -> Entries:
    if activation != "swiglu":
        return _mlp("", "")
    if apart:
        return (*dense("gate", "fc1_g"), *dense("up", "fc1_x"), *norm("inner_norm", "norm"), *dense("down", "fc2"))
    return (Entry(("gate/kernel", "up/kernel"), "fc1.weight", fused(linear())),
            Entry(("gate/bias", "up/bias"), "fc1.bias", fused(flat)), *dense("down", "fc2"))


def _mlp(ours: str, theirs: str) -> Entries:
    return under(ours, theirs, (*dense("up", "fc1"), *dense("down", "fc2")))


def _fused(ours: str, theirs: str, names: str) -> Entries:
    return (Entry(tuple(f"{ours}{name}/kernel" for name in names), f"{theirs}.weight", fused(linear())),
            Entry(tuple(f"{ours}{name}/bias" for name in names), f"{theirs}.bias", fused(flat)))


def _standard_conv(ours: str, theirs: str) -> Entries:
    return (Entry(f"{ours}/kernel", f"{theirs}.weight", image_kernel), Entry(f"{ours}/bias", f"{theirs}.bias"),
            Entry(f"{ours}/gain", f"{theirs}.gain", column))
