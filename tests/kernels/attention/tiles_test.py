import functools

import jax
import numpy as np
import pytest

from mmjax.kernels.attention import mask as masks
from mmjax.kernels.attention import tiles as tiling
from mmjax.kernels.attention.mask import IntervalMask

T = 96
SEGMENTS = np.array([[1] * 40 + [2] * 7 + [3] * 33 + [0] * 16, [1] * 96], np.int32)
IMAGES = np.sort(np.random.default_rng(0).integers(-1, 5, (2, T), np.int32), axis=1)
JUMPING = np.array([[-1] * 9 + [0] * 10 + [4] * 60 + [2] * 17] * 2, np.int32)  # two images in a row; one read again


def random_intervals(num_queries, num_keys):
    rng = np.random.default_rng(1)
    start = rng.integers(-5, num_keys, (2, num_queries), np.int32)
    return IntervalMask(start, start + rng.integers(-3, num_keys // 3, (2, num_queries), np.int32))


# mask, S: every row of the table in the design, and arbitrary intervals
MASKS = {
    "causal": (lambda: masks.causal(SEGMENTS), T),
    "full": (lambda: masks.full(SEGMENTS), T),
    "prefix": (lambda: masks.prefix(SEGMENTS, 13), T),
    "sliding_window": (lambda: masks.sliding_window(SEGMENTS, 11), T),
    "left_padded": (lambda: masks.left_padded(np.array([0, 37]), T), T),
    "per_image": (lambda: masks.per_image(IMAGES, 12), 60),
    "per_image_jumping": (lambda: masks.per_image(JUMPING, 12), 60),
    "all_keys": (lambda: masks.all_keys(2, T, np.array([50, 17])), 50),
    "random": (lambda: random_intervals(T, 70), 70),
    "empty": (lambda: IntervalMask(np.full((2, T), 5), np.full((2, T), 3)), 40),
}


def blocks_of(dense, block_queries, block_keys, fill):
    """bool[B, I, J, queries, keys], with `fill` where there is no such query; a missing key is never seen."""
    b, t, s = dense.shape
    pad_t, pad_s = -t % block_queries, -s % block_keys
    dense = np.pad(dense, ((0, 0), (0, 0), (0, pad_s)))
    dense = np.pad(dense, ((0, 0), (0, pad_t), (0, 0)), constant_values=fill)
    return dense.reshape(b, -1, block_queries, (s + pad_s) // block_keys, block_keys).swapaxes(2, 3)


@pytest.mark.quick
@pytest.mark.parametrize("blocks", [(16, 16), (10, 12), (40, 7), (128, 128)])
@pytest.mark.parametrize("name", MASKS)
def test_tiles_are_those_with_a_visible_pair(name, blocks):
    mask, s = MASKS[name][0](), MASKS[name][1]
    dense = np.asarray(masks.to_dense(mask, s))
    got = tiling.tiles(mask, s, *blocks)
    visible = blocks_of(dense, *blocks, fill=False).any((3, 4))
    np.testing.assert_array_equal(got.visible, visible)
    np.testing.assert_array_equal(got.full & visible, blocks_of(dense, *blocks, fill=True).all((3, 4)) & visible)


@pytest.mark.parametrize("name", MASKS)
def test_lists_hold_the_met_blocks_in_order(name):
    visible = np.asarray(tiling.tiles(MASKS[name][0](), MASKS[name][1], 10, 12).visible)
    for axes in ((0, 1, 2), (0, 2, 1)):
        table, count = jax.tree.map(np.asarray, tiling.lists(visible.transpose(axes)))
        for at in np.ndindex(count.shape):
            met = np.flatnonzero(visible.transpose(axes)[at])
            np.testing.assert_array_equal(table[at][: count[at]], met)
            assert (table[at][count[at] :] == (met[-1] if len(met) else 0)).all()


@pytest.mark.quick
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_a_walk_takes_every_visible_tile_once(name, swapped):
    tiles = tiling.tiles(MASKS[name][0](), MASKS[name][1], 10, 12)
    if swapped:
        tiles = tiling.Tiles(*(x.swapaxes(1, 2) for x in tiles))
    steps, count = jax.tree.map(np.asarray, jax.jit(tiling.walk)(tiles))
    visible, full = np.asarray(tiles.visible), np.asarray(tiles.full)
    for row in range(len(count)):
        outer, inner = np.nonzero(visible[row])
        assert count[row] == len(outer)     # tiles visited over the fewest possible: exactly 1.00
        has = functools.partial(np.bitwise_and, steps[row])
        where = outer << tiling.OUTER | inner << tiling.INNER
        np.testing.assert_array_equal(steps[row][: count[row]] >> tiling.INNER, where >> tiling.INNER)
        assert (steps[row][count[row] :] == (where[-1] if len(where) else 0)).all()
        np.testing.assert_array_equal(has(tiling.FULL)[: len(outer)] > 0, full[row][outer, inner])
        np.testing.assert_array_equal(has(tiling.PARTIAL)[: len(outer)] > 0, ~full[row][outer, inner])
        for begins, ends, block in ((tiling.OUTER_BEGINS, tiling.OUTER_ENDS, outer),
                                    (tiling.INNER_BEGINS, tiling.INNER_ENDS, inner)):
            np.testing.assert_array_equal(np.flatnonzero(has(begins)), np.sort(np.unique(block, return_index=True)[1]))
            last = len(block) - 1 - np.unique(block[::-1], return_index=True)[1]
            np.testing.assert_array_equal(np.flatnonzero(has(ends)), np.sort(last))
