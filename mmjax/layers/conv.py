"""Convolutions and pooling over images [B, H, W, C], as plain functions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Padding = str | Sequence[tuple[int, int]]


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, num_groups: int = 1, padding: Padding = "SAME"
           ) -> jax.Array:
    """Convolves float[B, H, W, C] with float[h, w, C / num_groups, C']: float[B, H', W', C'].

    "SAME" pads to ceil(H / stride) rows, the odd one below (TensorFlow's way); torch's `padding=1` is ((1, 1), (1, 1)).
    """
    return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (stride, stride), padding,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=num_groups)


def average_pool(x: jax.Array, size: int) -> jax.Array:
    """Means of size x size windows side by side: float[B, H, W, C] -> float[B, ceil(H / size), ceil(W / size), C].

    A window at the border that is cut off averages what it has.
    """
    def total(a):
        return jax.lax.reduce_window(a, 0.0, jax.lax.add, (1, size, size, 1), (1, size, size, 1), "SAME")

    if size == 1:
        return x
    sums, counts = total(x.astype(jnp.float32)), total(jnp.ones((1, *x.shape[1:3], 1), jnp.float32))
    return (sums / counts).astype(x.dtype)
