"""Which tiles of the T x S square hold a visible pair: the tables that let a kernel skip all the others.

A tile is one block of queries against one block of keys. The tables are exact for any intervals, not only for ordered
ones: a block whose queries read images 0 and 4 visits two tiles, not five. XLA computes them outside the kernels from
the two vectors of the mask; nothing here has both lengths, only both numbers of blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask


class Tiles(NamedTuple):
    """Tiles of every row, for I blocks of queries and J blocks of keys.

    Attributes:
        visible: bool[B, I, J] whether any query of the block sees any key of the block.
        full: bool[B, I, J] whether all of its queries see all of its keys, so that it needs no mask.
    """

    visible: jax.Array
    full: jax.Array


def tiles(mask: IntervalMask, num_keys: int, block_queries: int, block_keys: int) -> Tiles:
    """The tiles of a mask.

    Args:
        mask: int32[B, T] start and stop; intervals may be unordered, empty, or reach past either end.
        num_keys: S.
        block_queries: queries of a block; the last block may have fewer.
        block_keys: keys of a block; a last block that has fewer is never `full`.
    """
    mask = clip(mask, num_keys)
    first = jnp.arange(0, num_keys, block_keys, dtype=jnp.int32)
    # Queries that fill up the last block neither make a tile visible nor keep it from being full.
    start, stop = (_to_columns(bound, block_queries, fill=0) for bound in mask)
    visible = (jnp.maximum(start, first) < jnp.minimum(stop, first + block_keys)).any(2)
    stop = _to_columns(mask.stop, block_queries, fill=num_keys)
    return Tiles(visible, ((start <= first) & (first + block_keys <= stop)).all(2))


def _to_columns(bound: jax.Array, block: int, fill: int) -> jax.Array:
    """int32[B, T] -> int32[B, I, block, 1]."""
    bound = jnp.pad(bound, ((0, 0), (0, -bound.shape[1] % block)), constant_values=fill)
    return bound.reshape(bound.shape[0], -1, block, 1)


def clip(mask: IntervalMask, num_keys: int) -> IntervalMask:
    """The same mask with 0 <= start <= stop <= S."""
    start = jnp.clip(mask.start, 0, num_keys).astype(jnp.int32)
    return IntervalMask(start, jnp.maximum(start, jnp.minimum(mask.stop, num_keys).astype(jnp.int32)))


def lists(visible: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per block of the middle axis, the blocks of the last axis that it meets, in order.

    Args:
        visible: bool[B, I, J]; swap its last two axes for the blocks of queries that see a block of keys.

    Returns:
        int32[B, I, J] the met blocks first, then the last of them again and again (0 where there is none); int32[B, I]
        how many are met.
    """
    count = visible.sum(-1, dtype=jnp.int32)
    order = jnp.argsort(~visible, axis=-1, stable=True).astype(jnp.int32)
    last = jnp.maximum(count, 1)[..., None] - 1
    at = jnp.minimum(jnp.arange(visible.shape[-1], dtype=jnp.int32), last)
    return jnp.take_along_axis(order, at, -1) * (count > 0)[..., None], count


# A step of a walk is one number: outer block << OUTER | inner block << INNER | bits. Outer and inner are the middle and
# the last axis of the tiles that are walked.
FULL, PARTIAL, OUTER_BEGINS, OUTER_ENDS, INNER_BEGINS, INNER_ENDS = (1 << i for i in range(6))
INNER, OUTER = 6, 18
MAX_BLOCKS = 1 << (OUTER - INNER)  # of either axis


class Walk(NamedTuple):
    """Every visible tile of a row once, outer block by outer block: one axis of a kernel's grid.

    Attributes:
        steps: int32[B, I * J] the tile's blocks and bits, see above: whether all its pairs are visible or only some,
            and whether this is the first or the last visit of its outer and of its inner block in this row. Steps past
            `count` repeat the last tile without any bit: a pipeline then fetches nothing new.
        count: int32[B] visible tiles of the row.
    """

    steps: jax.Array
    count: jax.Array


def walk(tiles: Tiles) -> Walk:
    """Row-major walk of the tiles; give it tiles with swapped block axes to walk key block by key block."""
    visible = tiles.visible
    b, num_outer, num_inner = visible.shape
    rank_in_outer, rank_in_inner = (visible.cumsum(axis, dtype=jnp.int32) for axis in (2, 1))
    bits = jnp.where(tiles.full, FULL, PARTIAL)
    bits |= (rank_in_outer == 1) * OUTER_BEGINS
    bits |= (rank_in_outer == rank_in_outer[:, :, -1:]) * OUTER_ENDS
    bits |= (rank_in_inner == 1) * INNER_BEGINS
    bits |= (rank_in_inner == rank_in_inner[:, -1:]) * INNER_ENDS
    (tile,), (count,) = (x.swapaxes(0, 1) for x in lists(visible.reshape(b, 1, -1)))
    alive = jnp.arange(num_outer * num_inner, dtype=jnp.int32) < count[:, None]
    bits = jnp.where(alive, jnp.take_along_axis(bits.reshape(b, -1), tile, -1), 0)
    return Walk((tile // num_inner) << OUTER | (tile % num_inner) << INNER | bits, count)
