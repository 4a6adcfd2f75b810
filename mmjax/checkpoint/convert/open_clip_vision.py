"""Names of the vision towers of OpenAI's CLIP and open_clip, below `visual.`: ViTs and modified ResNets.

Entries are relative to a part, tower or head; see `transformers_vision`.
"""

from mmjax.checkpoint.convert.forms import conv, flat, fused, image_kernel, linear
from mmjax.checkpoint.convert.table import Entry, dense, norm, under
from mmjax.checkpoint.convert.transformers_vision import Entries, blocks
from mmjax.parts.resnet import ResNetConfig
from mmjax.parts.vit import ViTConfig

IGNORED = (r".*\.num_batches_tracked",)


def vit_tower(c: ViTConfig) -> Entries:
    """The parameters of `VisionTransformer` but for its projection."""
    kernels, biases = (tuple(f"attention/{name}/{kind}" for name in "qkv") for kind in ("kernel", "bias"))
    layer = (*norm("attention_norm", "ln_1"), Entry(kernels, "attn.in_proj_weight", fused(linear())),
             Entry(biases, "attn.in_proj_bias", fused(flat)), *dense("attention/out", "attn.out_proj", inputs=2),
             *norm("mlp_norm", "ln_2"), *dense("mlp/up", "mlp.c_fc"), *dense("mlp/down", "mlp.c_proj"))
    return (Entry("class_embed", "class_embedding"), Entry("position_embed", "positional_embedding"),
            Entry("patch_embed/kernel", "conv1.weight", conv(c.patch_size)), *norm("pre_norm", "ln_pre"),
            *norm("final_norm", "ln_post"), *blocks(c, "transformer.resblocks.{layer}.", layer))


def vit_head() -> Entries:
    """Its projection."""
    return (Entry("proj/kernel", "proj"),)


def resnet_tower(c: ResNetConfig) -> Entries:
    """The parameters and stored statistics of `ModifiedResNet` but for its pooling."""
    stem = tuple(e for i in range(3) for e in _conv_norm(f"stem_{i}", f"conv{i + 1}", f"bn{i + 1}"))
    convs = tuple(e for i in (1, 2, 3) for e in _conv_norm(f"conv{i}", f"conv{i}", f"bn{i}"))
    shortcut = _conv_norm("shortcut", "downsample.0", "downsample.1")
    stages = ()
    for i, depth in enumerate(c.depths):
        stages += under(f"stage{i}_first/", f"layer{i + 1}.0.", (*convs, *shortcut))
        if depth > 1:
            stages += under(f"stage{i}_rest/", f"layer{i + 1}." + "{block}.", convs, block=range(1, depth))
    return (*stem, *stages)


def resnet_head() -> Entries:
    """Its attention pooling, under `attnpool.`."""
    maps = (*(e for name in "qkv" for e in dense(name, f"{name}_proj")), *dense("out", "c_proj", inputs=2))
    return under("pool/", "attnpool.", (Entry("position_embed", "positional_embedding"), *maps))


def _conv_norm(ours: str, conv_name: str, norm_name: str) -> Entries:
    return (Entry(f"{ours}/kernel", f"{conv_name}.weight", image_kernel), *norm(ours, norm_name),
            Entry(f"{ours}/mean", f"{norm_name}.running_mean"), Entry(f"{ours}/var", f"{norm_name}.running_var"))
