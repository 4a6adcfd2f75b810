"""Names of the vision towers and heads of Hugging Face transformers: CLIP, SigLIP, BLIP-2, AIMv2.

Each function gives entries for one part, with our paths and their names relative to the part; `table.under` puts them
in a model.
"""

from mmjax.checkpoint.convert.forms import batched, conv, flat, fused, linear, token
from mmjax.checkpoint.convert.table import Entry, dense, norm, under
from mmjax.parts.vision_head import VisionHeadConfig
from mmjax.parts.vit import ViTConfig

Entries = tuple[Entry, ...]
IGNORED = (r"(.*\.)?position_ids",)


def blocks(c: ViTConfig, theirs: str, layer: Entries) -> Entries:
    """A layer's entries for all blocks of a tower; "{layer}" in `theirs` is the number."""
    first = c.num_layers - c.num_last_layers
    parts = (("blocks/", range(first)), ("last_blocks/", range(first, c.num_layers)))
    return tuple(e for path, layers in parts if layers for e in under(path, theirs, layer, layer=layers))


def clip_tower(c: ViTConfig) -> Entries:
    """The parameters of `CLIPVisionModel`, whose `post_layernorm` is our final norm."""
    return (Entry("class_embed", "embeddings.class_embedding"),
            Entry("patch_embed/kernel", "embeddings.patch_embedding.weight", conv(c.patch_size)),
            Entry("position_embed", "embeddings.position_embedding.weight"),
            *norm("pre_norm", "pre_layrnorm"), *norm("final_norm", "post_layernorm"),
            *blocks(c, "encoder.layers.{layer}.", _layer()))


def clip_head() -> Entries:
    """`visual_projection` of `CLIPModel`."""
    return dense("proj", "visual_projection", use_bias=False)


def siglip_tower(c: ViTConfig) -> Entries:
    """The parameters of `SiglipVisionModel` but for its head."""
    return (*_patch_embed(c), Entry("position_embed", "embeddings.position_embedding.weight"),
            *norm("final_norm", "post_layernorm"), *blocks(c, "encoder.layers.{layer}.", _layer()))


def siglip_head(c: VisionHeadConfig) -> Entries:
    """The parameters of its head, under `head.`."""
    kernels, biases = (tuple(f"attention/{name}/{kind}" for name in "qkv") for kind in ("kernel", "bias"))
    pool = (Entry("latent", "probe", token), Entry(kernels, "attention.in_proj_weight", fused(linear())),
            Entry(biases, "attention.in_proj_bias", fused(flat)),
            *dense("attention/out", "attention.out_proj", inputs=2), *norm("norm", "layernorm"),
            *dense("mlp/up", "mlp.fc1"), *dense("mlp/down", "mlp.fc2"))
    return under("pool/", "head.", pool)


def blip2_tower(c: ViTConfig) -> Entries:
    """The parameters of `Blip2VisionModel`; its `qkv.bias` has keys, so `key_bias` must be on."""
    kernels, biases = (tuple(f"attention/{name}/{kind}" for name in "qkv") for kind in ("kernel", "bias"))
    layer = (*norm("attention_norm", "layer_norm1"), Entry(kernels, "self_attn.qkv.weight", fused(linear())),
             Entry(biases, "self_attn.qkv.bias", fused(flat)),
             *dense("attention/out", "self_attn.projection", inputs=2), *norm("mlp_norm", "layer_norm2"),
             *dense("mlp/up", "mlp.fc1"), *dense("mlp/down", "mlp.fc2"))
    return (Entry("class_embed", "embeddings.class_embedding", token), *_patch_embed(c),
            Entry("position_embed", "embeddings.position_embedding", batched), *norm("final_norm", "post_layernorm"),
            *blocks(c, "encoder.layers.{layer}.", layer))


def aimv2_tower(c: ViTConfig) -> Entries:
    """The parameters of `Aimv2VisionModel` without a head (`use_head=False`); `is_native` is our "sincos"."""
    layer = (*norm("attention_norm", "rms_norm1", use_bias=False),
             *_attention("attention", use_bias=False),
             *norm("mlp_norm", "rms_norm2", use_bias=False),
             *(e for name in ("gate", "up", "down") for e in dense(f"mlp/{name}", f"ffn.{name}_proj", use_bias=False)))
    table = (Entry("position_embed", "embeddings.position_embedding.weight"),) if c.positions == "learned" else ()
    return (*dense_patches(c, "embeddings.patch_embed"), *norm("patch_norm", "embeddings.rms_norm", use_bias=False),
            *table, *norm("final_norm", "rms_norm", use_bias=False), *blocks(c, "encoder.layers.{layer}.", layer))


def dense_patches(c: ViTConfig, theirs: str) -> Entries:
    """A convolution over patches with bias."""
    return (Entry("patch_embed/kernel", f"{theirs}.weight", conv(c.patch_size)),
            Entry("patch_embed/bias", f"{theirs}.bias"))


def _patch_embed(c: ViTConfig) -> Entries:
    return dense_patches(c, "embeddings.patch_embedding")


def _layer() -> Entries:
    """A layer of CLIP and SigLIP."""
    return (*norm("attention_norm", "layer_norm1"), *_attention("self_attn"), *norm("mlp_norm", "layer_norm2"),
            *dense("mlp/up", "mlp.fc1"), *dense("mlp/down", "mlp.fc2"))


def _attention(theirs: str, use_bias: bool = True) -> Entries:
    return (*(e for name in "qkv" for e in dense(f"attention/{name}", f"{theirs}.{name}_proj", use_bias=use_bias)),
            *dense("attention/out", f"{theirs}.out_proj", inputs=2, use_bias=use_bias))
