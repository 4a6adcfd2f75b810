"""Layer norm and RMS norm, with statistics in float32."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.layers.params import param


class Norm(nn.Module):
    """Normalises the last dimension.

    Attributes:
        dim: size of the last dimension.
        kind: "layer" (mean and variance; arXiv:1607.06450) or "rms" (arXiv:1910.07467).
        eps: added to the variance or mean square.
        use_bias: whether a layer norm has a bias.
        dtype: dtype of the result.
    """

    dim: int
    kind: str = "layer"
    eps: float = 1e-5
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[..., dim] -> dtype[..., dim]."""
        x = x.astype(jnp.float32)
        if self.kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        x = x * param(self, "scale", nn.initializers.ones, (self.dim,), ("norm",))
        if self.kind == "layer" and self.use_bias:
            x = x + param(self, "bias", nn.initializers.zeros, (self.dim,), ("norm",))
        return x.astype(self.dtype)


def l2_normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Divides the last dimension of x by its Euclidean norm, computed in float32; zeros stay zeros.

    The norm counts as at least `eps`, which also keeps the gradient at zero finite.
    """
    wide = x.astype(jnp.float32)
    square = jnp.square(wide).sum(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(square, eps**2))).astype(x.dtype)
