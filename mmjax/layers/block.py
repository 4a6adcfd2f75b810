"""The residual block of every transformer here: attention and feed-forward, pre-norm or Sub-LN."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import IntervalMask, Rotary
from mmjax.layers.attention import Attention, KVCache
from mmjax.layers.linear import dropout
from mmjax.layers.mlp import ACTIVATIONS, Mlp
from mmjax.layers.norm import Norm
from mmjax.layers.params import scaled, xavier
from mmjax.parallel import shard


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One transformer block.

    Attributes:
        embed_dim: D, width of the residual stream.
        num_heads: N query heads.
        mlp_dim: F, inner width of the feed-forward network.
        num_kv_heads: K key heads, N by default (multi-head attention).
        head_dim: H, D / N by default.
        activation: a key of `layers.mlp.ACTIVATIONS`.
        norm: "layer" or "rms".
        norm_eps: its epsilon.
        use_bias: biases on linear maps (and layer norms).
        sub_norm: Sub-LN, a second norm inside attention and feed-forward (Magneto, arXiv:2210.06423).
        init_gain: gain of W_v, W_o, W_1, W_2 under Xavier normal; None for LeCun normal everywhere.
        dropout: rate on both residual branches.
        dtype: compute dtype, "float32" or "bfloat16".
    """

    embed_dim: int
    num_heads: int
    mlp_dim: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    activation: str = "gelu"
    norm: str = "layer"
    norm_eps: float = 1e-5
    use_bias: bool = True
    sub_norm: bool = False
    init_gain: float | None = None
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}, "
                             "or give head_dim")
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}; choose from {', '.join(ACTIVATIONS)}")
        if self.norm not in ("layer", "rms"):
            raise ValueError(f"unknown norm {self.norm!r}; choose 'layer' or 'rms'")

    @property
    def heads(self) -> tuple[int, int, int]:
        """(num_heads, num_kv_heads, head_dim) with the defaults filled in."""
        return self.num_heads, self.num_kv_heads or self.num_heads, self.head_dim or self.embed_dim // self.num_heads


class Block(nn.Module):
    """x <- x + Attn(LN(x)); x <- x + Mlp(LN(x)), each branch with LN* inside under Sub-LN."""

    config: BlockConfig

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        kernel_init: Any = scaled if c.init_gain is None else xavier
        shared = dict(use_bias=c.use_bias, sub_norm=c.sub_norm, norm_eps=c.norm_eps,
                      kernel_init=kernel_init, gain=c.init_gain or 1.0, dtype=dtype)
        self.attention_norm = Norm(c.embed_dim, c.norm, c.norm_eps, c.use_bias, dtype)
        self.attention = Attention(c.embed_dim, *c.heads, kv_dim=c.embed_dim, **shared)
        self.mlp_norm = Norm(c.embed_dim, c.norm, c.norm_eps, c.use_bias, dtype)
        self.mlp = Mlp(c.embed_dim, c.mlp_dim, c.activation, **shared)

    def __call__(self, x: jax.Array, mask: IntervalMask, rotary: Rotary | None = None,
                 key: jax.Array | None = None, cache: KVCache | None = None,
                 layer: jax.Array | None = None) -> tuple[jax.Array, KVCache | None]:
        """float[B, T, D] -> float[B, T, D] and the cache, grown by the T tokens where one is given."""
        keys = (None, None) if key is None else jax.random.split(key)
        h = self.attention_norm(x)
        if cache is None:
            h = self.attention(h, mask, rotary)
        else:
            h, cache = self.attention.extend(h, mask, rotary, cache, layer)
        x = shard(x + dropout(h, self.config.dropout, keys[0]), "batch", "seq", "act_embed")
        h = self.mlp(self.mlp_norm(x))
        return shard(x + dropout(h, self.config.dropout, keys[1]), "batch", "seq", "act_embed"), cache
