"""The position-wise feed-forward network in its variants."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.layers.linear import Linear
from mmjax.layers.norm import Norm
from mmjax.layers.params import scaled
from mmjax.parallel import shard

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),          # OpenAI CLIP
    "relu": jax.nn.relu,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),           # Flamingo, after Primer (arXiv:2109.08668)
    "swiglu": jax.nn.silu,                                          # gated: silu(gate) * up (arXiv:2002.05202)
    "geglu_tanh": lambda x: jax.nn.gelu(x, approximate=True),       # gated: T5 v1.1, of the same paper
}
GATED = ("swiglu", "geglu_tanh")


class Mlp(nn.Module):
    """W_2 · LN*(act(W_1 x)), or W_2 · LN*(act(W_g x) * W_1 x) for an activation of `GATED`.

    Attributes:
        embed_dim: D, width of input and output.
        mlp_dim: F, inner width.
        activation: a key of `ACTIVATIONS`.
        use_bias: biases on the linear maps.
        sub_norm: whether LN* stands before W_2 (Sub-LN, arXiv:2210.06423).
        norm_eps: its epsilon.
        kernel_init, gain: see `Linear`.
        dtype: compute dtype.
    """

    embed_dim: int
    mlp_dim: int
    activation: str = "gelu"
    use_bias: bool = True
    sub_norm: bool = False
    norm_eps: float = 1e-5
    kernel_init: Any = scaled
    gain: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[..., T, D] -> dtype[..., T, D]."""
        def linear(name, size_in, size_out, names):
            return Linear((size_in,), (size_out,), names, self.use_bias, self.kernel_init, self.gain, self.dtype,
                          name=name)

        act = ACTIVATIONS[self.activation]
        h = linear("up", self.embed_dim, self.mlp_dim, ("embed", "mlp"))(x)
        if self.activation in GATED:
            h = act(linear("gate", self.embed_dim, self.mlp_dim, ("embed", "mlp"))(x)) * h
        else:
            h = act(h)
        h = shard(h, "batch", "seq", "act_mlp")
        if self.sub_norm:
            h = Norm(self.mlp_dim, eps=self.norm_eps, dtype=self.dtype, name="inner_norm")(h)
        return linear("down", self.mlp_dim, self.embed_dim, ("mlp", "embed"))(h)
