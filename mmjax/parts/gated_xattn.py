"""Gated cross-attention into a frozen language model: GATED XATTN-DENSE of Flamingo."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import IntervalMask
from mmjax.layers import Attention, KVCache, Mlp, Norm, param


@dataclasses.dataclass(frozen=True)
class GatedXAttnConfig:
    """One gated cross-attention layer (arXiv:2204.14198, section 2.2 and figure 4).

    Attributes:
        embed_dim: D, width of the language model.
        visual_dim: width of the visual tokens.
        num_heads, head_dim: N and H; N · H need not be D.
        mlp_dim: inner width of the dense part.
        activation: a key of `layers.ACTIVATIONS`.
        norm_eps: epsilon of the layer norms.
        gate_init: a and b below at the start. 0 keeps what a frozen language model does; one that trains from scratch
            has nothing to keep, and opens its gates only slowly from there.
        dtype: compute dtype.
    """

    embed_dim: int
    visual_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    activation: str = "squared_relu"
    norm_eps: float = 1e-5
    gate_init: float = 0.0
    dtype: str = "float32"


class GatedXAttn(nn.Module):
    """y <- y + tanh(a) · XAttn(LN(y), v) where y sees an image; y <- y + tanh(b) · Mlp(LN(y)).

    With both gates at 0, where published training starts, a fresh layer is the identity, bit for bit.
    """

    config: GatedXAttnConfig

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        gate = nn.initializers.constant(c.gate_init)
        self.attention_norm = Norm(c.embed_dim, eps=c.norm_eps, dtype=dtype)
        self.attention = Attention(c.embed_dim, c.num_heads, c.num_heads, c.head_dim, kv_dim=c.visual_dim,
                                   use_bias=False, dtype=dtype)
        self.attention_gate = param(self, "attention_gate", gate, (), ())
        self.mlp_norm = Norm(c.embed_dim, eps=c.norm_eps, dtype=dtype)
        self.mlp = Mlp(c.embed_dim, c.mlp_dim, c.activation, use_bias=False, dtype=dtype)
        self.mlp_gate = param(self, "mlp_gate", gate, (), ())

    def project_kv(self, visual: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Visual tokens float[B, S, visual_dim] -> keys and values [B, S, N, H], to be kept while decoding."""
        return self.attention.project_kv(visual)

    def __call__(self, y: jax.Array, visual: jax.Array, mask: IntervalMask) -> jax.Array:
        """float[B, T, D] and visual tokens float[B, S, visual_dim] -> float[B, T, D].

        Tokens with an empty interval get exactly 0 from the attention; they still pass the dense part.
        """
        return self._add(y, self.attention(self.attention_norm(y), mask, source=visual))

    def attend_cached(self, y: jax.Array, mask: IntervalMask, cache: KVCache, layer: jax.Array) -> jax.Array:
        """The same from the keys and values of one layer of a cache; for a single token they are not copied."""
        return self._add(y, self.attention.attend_cached(self.attention_norm(y), mask, cache, layer))

    def _add(self, y: jax.Array, attended: jax.Array) -> jax.Array:
        y = y + jnp.tanh(self.attention_gate).astype(y.dtype) * attended
        return y + jnp.tanh(self.mlp_gate).astype(y.dtype) * self.mlp(self.mlp_norm(y))
