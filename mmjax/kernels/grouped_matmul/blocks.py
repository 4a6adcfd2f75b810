"""Grouped matmul in blocks of rows that belong to one group, with plain XLA operations: the CPU path.

XLA lowers `ragged_dot` on a CPU to products of every group with every row. Here a loop visits only the blocks there
are, at most one partly filled per group, in the backward pass as in the forward pass.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK_ROWS = 128    # from here on a block's product takes longer than reading its group's matrix


class _Blocks(NamedTuple):
    """One entry for each block that could be; the first `count` are.

    Attributes:
        group: int32[?] whose rows they are.
        start, stop: int32[?] their rows; a block reads `size` rows from `start`, those from `stop` on in vain.
        count: int32[].
    """

    group: jax.Array
    start: jax.Array
    stop: jax.Array
    count: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def blocks(x: jax.Array, kernels: jax.Array, group_sizes: jax.Array, block_rows: int = BLOCK_ROWS) -> jax.Array:
    """Arguments and result as `api.grouped_matmul`; `block_rows` bounds the rows of a block."""
    return _times(x, kernels, group_sizes, block_rows)


def _forward(x, kernels, group_sizes, block_rows):
    return _times(x, kernels, group_sizes, block_rows), (x, kernels, group_sizes)


def _backward(block_rows, saved, d_out):
    x, kernels, group_sizes = saved
    size = min(block_rows, len(x))
    cut, (x_rows, d_rows) = _cut(group_sizes, len(x), size), (_pad(a, size) for a in (x, d_out))

    def step(i, d_kernels):
        rows, group = _rows(x_rows, cut.start[i], size), cut.group[i]
        d = jnp.where(_mine(cut, i, size), _rows(d_rows, cut.start[i], size), 0)
        update = jnp.matmul(rows.T, d, preferred_element_type=jnp.float32)
        return d_kernels.at[group].add(update)

    d_kernels = jax.lax.fori_loop(0, cut.count, step, jnp.zeros(kernels.shape, jnp.float32))
    d_x = _times(d_out, kernels.swapaxes(1, 2), group_sizes, block_rows)
    return d_x.astype(x.dtype), d_kernels.astype(kernels.dtype), None


blocks.defvjp(_forward, _backward)


def _times(x, kernels, group_sizes, block_rows) -> jax.Array:
    size = min(block_rows, len(x))
    cut, rows = _cut(group_sizes, len(x), size), _pad(x, size)

    def step(i, out):
        new = jnp.matmul(_rows(rows, cut.start[i], size), kernels[cut.group[i]], preferred_element_type=jnp.float32)
        # What is not its own is zero until the next block, which has it, is written over it.
        new = jnp.where(_mine(cut, i, size), new, 0).astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(out, new, cut.start[i], axis=0)

    out = jnp.zeros((len(rows), kernels.shape[2]), x.dtype)
    return jax.lax.fori_loop(0, cut.count, step, out)[:len(x)]


def _cut(group_sizes, num_rows: int, size: int) -> _Blocks:
    stop = jnp.minimum(jnp.cumsum(group_sizes, dtype=jnp.int32), num_rows)
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), stop[:-1]])
    num_blocks = (stop - first + size - 1) // size
    last_block = jnp.cumsum(num_blocks, dtype=jnp.int32)
    index = jnp.arange(-(-num_rows // size) + len(group_sizes), dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(last_block, index, side="right"), len(group_sizes) - 1).astype(jnp.int32)
    start = first[group] + (index - (last_block - num_blocks)[group]) * size
    return _Blocks(group, start, stop[group], last_block[-1])


def _mine(cut: _Blocks, i, size: int) -> jax.Array:
    return (cut.start[i] + jnp.arange(size, dtype=jnp.int32) < cut.stop[i])[:, None]


def _pad(x, size: int) -> jax.Array:
    """`x` with room for a block that starts at its last row."""
    return jnp.pad(x, ((0, size), (0, 0)))


def _rows(x, start, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)
