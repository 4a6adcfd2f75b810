"""Names of the EVA authors' own files, EVA-CLIP's and Emu2's: vision towers, below `visual.` there.

Entries are relative to a tower; see `transformers_vision`.
"""

from mmjax.checkpoint.convert.forms import batched, flat, fused, linear, token
from mmjax.checkpoint.convert.table import Entry, dense, norm, under
from mmjax.checkpoint.convert.transformers_vision import Entries, blocks, dense_patches
from mmjax.parts.vit import ViTConfig

IGNORED = (r"(.*\.)?rope\.freqs_(cos|sin)",)


def tower(c: ViTConfig) -> Entries:
    """`EVAVisionTransformer`: with a second norm q, k, v are kept apart, else fused; their biases stand alone."""
    block = c.block
    biases = (Entry("attention/q/bias", "q_bias", flat), Entry("attention/v/bias", "v_bias", flat))
    apart = bool(block.mlp_sub_norm)
    if apart:
        kernels = tuple(e for name in "qkv" for e in dense(f"attention/{name}", f"{name}_proj", use_bias=False))
    else:
        kernels = (Entry(tuple(f"attention/{name}/kernel" for name in "qkv"), "qkv.weight", fused(linear())),)
    attention = (*kernels, *biases, *dense("attention/out", "proj", inputs=2))
    attention += norm("attention/inner_norm", "inner_attn_ln") if block.sub_norm else ()
    mlp = _mlp(block.activation, apart) + (norm("inner_norm", "ffn_ln") if apart else ())
    layer = (*norm("attention_norm", "norm1"), *under("", "attn.", attention), *norm("mlp_norm", "norm2"),
             *under("mlp/", "mlp.", mlp))
    final = norm("final_norm", "norm") if c.final_norm else ()
    return (Entry("class_embed", "cls_token", token), Entry("position_embed", "pos_embed", batched),
            *dense_patches(c, "patch_embed.proj"), *final, *blocks(c, "blocks.{layer}.", layer))


def _mlp(activation: str, apart: bool) -> Entries:
    if activation != "swiglu":
        return *dense("up", "fc1"), *dense("down", "fc2")
    if apart:
        return *dense("gate", "w1"), *dense("up", "w2"), *dense("down", "w3")
    return (Entry(("gate/kernel", "up/kernel"), "w12.weight", fused(linear())),
            Entry(("gate/bias", "up/bias"), "w12.bias", fused(flat)), *dense("down", "w3"))
