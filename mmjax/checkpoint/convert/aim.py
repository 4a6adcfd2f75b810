"""Names of AIM's own files (ml-aim, version 1): the trunk, without the classifier that is trained on it.

Entries are relative to a tower; see `transformers_vision`.
"""

from mmjax.checkpoint.convert.forms import fused, linear
from mmjax.checkpoint.convert.table import Entry, dense, norm
from mmjax.checkpoint.convert.transformers_vision import Entries, blocks, dense_patches
from mmjax.parts.vit import ViTConfig

IGNORED = (r"head\..*", r".*\.attn_mask")


def tower(c: ViTConfig) -> Entries:
    """Preprocessor and trunk."""
    kernels = tuple(f"attention/{name}/kernel" for name in "qkv")
    layer = (*norm("attention_norm", "norm_1"), Entry(kernels, "attn.qkv.weight", fused(linear())),
             *dense("attention/out", "attn.proj", inputs=2, use_bias=False), *norm("mlp_norm", "norm_2"),
             *dense("mlp/up", "mlp.fc1", use_bias=False), *dense("mlp/down", "mlp.fc2", use_bias=False))
    return (*dense_patches(c, "preprocessor.patchifier.proj"), *norm("patch_norm", "preprocessor.patchifier.norm"),
            *norm("final_norm", "trunk.post_trunk_norm"), *blocks(c, "trunk.blocks.{layer}.", layer))
