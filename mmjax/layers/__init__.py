"""The layers all parts are built from, as thin Flax Linen modules."""

from mmjax.layers.attention import Attention, KVCache
from mmjax.layers.block import Block, BlockConfig
from mmjax.layers.embed import Embed
from mmjax.layers.linear import Linear, dropout
from mmjax.layers.mlp import ACTIVATIONS, GATED, Mlp
from mmjax.layers.moe import MoeConfig, router_losses
from mmjax.layers.norm import Norm, l2_normalize
from mmjax.layers.params import axes_of, init_params, param, scaled, unbox, xavier
from mmjax.layers.stack import Every, Hook, init_stack, num_hooks, run_layers, run_stack, stack_params, unstack

__all__ = [
    "ACTIVATIONS", "Attention", "Block", "BlockConfig", "Embed", "Every", "GATED", "Hook", "KVCache", "Linear", "Mlp",
    "MoeConfig", "Norm", "axes_of", "dropout", "init_params", "init_stack", "l2_normalize", "num_hooks", "param",
    "router_losses", "run_layers", "run_stack", "scaled", "stack_params", "unbox", "unstack", "xavier",
]
