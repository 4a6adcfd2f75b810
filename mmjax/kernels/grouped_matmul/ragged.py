"""Grouped matmul by JAX's own kernels: `jax.lax.ragged_dot`, and Megablox for the kernels' gradient on a TPU.

libtpu compiles `ragged_dot` to a Pallas kernel that computes each row once, but its gradient for the kernels to one
product of every group with all rows: with 8 groups of 4096 x 1024 x 2048 the backward pass then takes 155 GFLOP, with
Megablox 34.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import gmm

ROW_TILE, TILE = 512, 1024      # of Megablox: rows must be a multiple, the other two dimensions are masked


@jax.custom_vjp
def ragged(x: jax.Array, kernels: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """Arguments and result as `api.grouped_matmul`."""
    return _times(x, kernels, group_sizes)


def _times(x, kernels, group_sizes) -> jax.Array:
    out = jax.lax.ragged_dot(x, kernels, group_sizes, preferred_element_type=jnp.float32)
    return _without_rest(out, group_sizes).astype(x.dtype)


def _forward(x, kernels, group_sizes):
    return _times(x, kernels, group_sizes), (x, kernels, group_sizes)


def _backward(saved, d_out):
    x, kernels, group_sizes = saved
    d_x = _times(d_out.astype(x.dtype), kernels.swapaxes(1, 2), group_sizes)
    d_kernels = jax.lax.platform_dependent(
        x, kernels, d_out, group_sizes, tpu=kernel_gradient, default=_kernel_gradient_by_ragged_dot)
    return d_x, d_kernels, None


ragged.defvjp(_forward, _backward)


def kernel_gradient(x, kernels, d_out, group_sizes, interpret: bool = False) -> jax.Array:
    """x^T d_out over the rows of each group, in the shape and dtype of `kernels`, by Megablox.

    It has no public name for it but as a gradient; XLA drops the product that nobody reads.
    """
    missing = -len(x) % ROW_TILE
    x, d_out = (jnp.pad(a, ((0, missing), (0, 0))) for a in (x, d_out.astype(x.dtype)))
    tiling, sizes = (ROW_TILE, min(TILE, x.shape[1]), min(TILE, d_out.shape[1])), group_sizes.astype(jnp.int32)
    product = lambda kernels: gmm(x, kernels, sizes, x.dtype, tiling, None, None, False, interpret)  # noqa: E731
    return jax.vjp(product, kernels)[1](d_out)[0]


def _kernel_gradient_by_ragged_dot(x, kernels, d_out, group_sizes) -> jax.Array:
    def product(kernels):
        return jax.lax.ragged_dot(x, kernels, group_sizes, preferred_element_type=jnp.float32)

    return jax.vjp(product, kernels)[1](_without_rest(d_out, group_sizes).astype(jnp.float32))[0]


def _without_rest(rows, group_sizes) -> jax.Array:
    """`rows` with zeros behind the last group, where JAX promises nothing."""
    used = jnp.arange(len(rows)) < group_sizes.sum()
    return jnp.where(used[:, None], rows, 0)
