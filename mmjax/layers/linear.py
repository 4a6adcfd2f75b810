"""Linear maps over one or more trailing dimensions, and dropout."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mmjax.layers.params import Initializer, param, scaled
from mmjax.parallel import gather


class Linear(nn.Module):
    """y = x · kernel + bias over the last `len(in_shape)` dimensions of x.

    Attributes:
        in_shape: sizes of the contracted dimensions, e.g. (D,) or (N, H).
        out_shape: sizes of the dimensions that replace them, e.g. (N, H) or (D,).
        names: logical axis name of each kernel dimension, inputs first.
        use_bias: whether a bias of `out_shape` is added.
        kernel_init: `kernel_init(scale, in_axis, out_axis)` -> initializer; LeCun normal by default.
        gain: factor on the initial standard deviation.
        dtype: dtype of the factors, to which parameters are cast.
        out_dtype: dtype of the product and the result; `dtype` by default.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    names: tuple[str, ...]
    use_bias: bool = True
    kernel_init: Any = scaled
    gain: float = 1.0
    dtype: Any = jnp.float32
    out_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[..., *in_shape] -> out_dtype[..., *out_shape]."""
        out_dtype = self.out_dtype or self.dtype
        n_in = len(self.in_shape)
        kernel = param(self, "kernel", self._initializer(), self.in_shape + self.out_shape, self.names)
        y = _matmul(x.astype(self.dtype), kernel.astype(self.dtype), n_in, out_dtype)
        if self.has_variable("params", "lora_a"):       # see `layers.low_rank`
            a, b = (gather(self.get_variable("params", name)).astype(self.dtype) for name in ("lora_a", "lora_b"))
            y = y + _matmul(_matmul(x.astype(self.dtype), a, n_in, self.dtype), b, 1, out_dtype)
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, self.out_shape, self.names[n_in:])
            y = y + bias.astype(out_dtype)
        return y

    def _initializer(self) -> Initializer:
        """Initialises as a matrix of the flattened dimensions, so that fans are products of all of them."""
        matrix = (math.prod(self.in_shape), math.prod(self.out_shape))
        flat = self.kernel_init(self.gain, 0, 1)
        return lambda key, shape, dtype: flat(key, matrix, dtype).reshape(shape)


def _matmul(x: jax.Array, kernel: jax.Array, num_contracted: int, out_dtype: Any) -> jax.Array:
    """Contracts the last dimensions of x with the first of the kernel, as a product of two matrices.

    On CPU the gradient of a product with several leading dimensions transposes whole activations: as matrices a
    SwiGLU network's is 2.5 times as fast. A sequence split over devices cannot be merged with the rows, so there
    the dimensions stay apart; as on an Explicit mesh, where the result's layout is said, too.
    """
    lead, out = x.shape[:x.ndim - num_contracted], kernel.shape[num_contracted:]
    mesh = jax.sharding.get_abstract_mesh()
    is_explicit = AxisType.Explicit in mesh.axis_types
    if is_explicit or mesh.shape.get("seq", 1) > 1:
        axes = (tuple(range(len(lead), x.ndim)), tuple(range(num_contracted)))
        where = P(*jax.typeof(x).sharding.spec[:len(lead)], *jax.typeof(kernel).sharding.spec[num_contracted:])
        return jax.lax.dot_general(x, kernel, (axes, ((), ())), preferred_element_type=out_dtype,
                                   out_sharding=where if is_explicit else None)
    size_in = math.prod(kernel.shape[:num_contracted])
    y = jnp.matmul(x.reshape(-1, size_in), kernel.reshape(size_in, -1), preferred_element_type=out_dtype)
    return y.reshape(*lead, *out)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and rescales the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
