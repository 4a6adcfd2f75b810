"""Every implementation against NumPy float64, group by group."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.grouped_matmul import api, blocks, grouped_matmul, ragged

# Some groups are empty, some end where blocks do not, rows are left over.
SIZES = [[5, 0, 7, 1, 0], [0, 0, 0, 0, 16], [3, 4, 4, 4, 2], [0, 0, 0, 0, 0]]
RUNS = api.IMPLEMENTATIONS | {"small blocks": functools.partial(blocks.blocks, block_rows=4)}


def random_case(dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in ((17, 6), (5, 6, 9), (17, 9))]


def by_hand(x, kernels, sizes, d_out):
    """(out, d_x, d_kernels) in float64."""
    x, kernels, d_out = (np.asarray(a, np.float64) for a in (x, kernels, d_out))
    out, d_x, d_kernels = np.zeros(d_out.shape), np.zeros(x.shape), np.zeros(kernels.shape)
    stop = np.cumsum(sizes)
    for g, size in enumerate(sizes):
        rows = slice(stop[g] - size, stop[g])
        out[rows], d_x[rows] = x[rows] @ kernels[g], d_out[rows] @ kernels[g].T
        d_kernels[g] = x[rows].T @ d_out[rows]
    return out, d_x, d_kernels


@functools.partial(jax.jit, static_argnums=0)
def value_and_grads(name, x, kernels, sizes, d_out):
    out, vjp = jax.vjp(lambda x, kernels: RUNS[name](x, kernels, sizes), x, kernels)
    return out, *vjp(d_out)


@pytest.mark.quick
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", RUNS)
def test_values_and_gradients_match_numpy(name, dtype, tolerance):
    x, kernels, d_out = random_case(dtype)
    for sizes in SIZES:
        got = value_and_grads(name, x, kernels, np.array(sizes, np.int32), d_out)
        for a, b in zip(got, by_hand(x, kernels, sizes, d_out), strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1))


@pytest.mark.parametrize("sizes", SIZES)
def test_megablox_gradient_of_the_kernels(sizes, monkeypatch):
    """What a TPU runs, in the interpreter."""
    monkeypatch.setattr(ragged, "ROW_TILE", 8)
    x, kernels, d_out = random_case()
    want = by_hand(x, kernels, sizes, d_out)[2]
    got = ragged.kernel_gradient(x, kernels, d_out, np.array(sizes, np.int32), interpret=True)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * max(np.abs(want).max(), 1))


def test_blocks_visits_no_more_blocks_than_there_are():
    sizes = np.array([5, 0, 7, 1, 0], np.int32)
    cut = blocks._cut(sizes, 17, 4)
    assert cut.count == 2 + 2 + 1
    np.testing.assert_array_equal(cut.group[:5], [0, 0, 2, 2, 3])
    np.testing.assert_array_equal(cut.start[:5], [0, 4, 5, 9, 12])


def test_no_rows_give_no_rows():
    out = grouped_matmul(np.zeros((0, 6), np.float32), np.zeros((2, 6, 3), np.float32), np.zeros(2, int))
    assert out.shape == (0, 3)


@pytest.mark.parametrize("x, kernels, sizes, words", [
    (np.zeros((3, 4)), np.zeros((2, 5, 6)), np.zeros(2, int), r"\[3, 4\] and kernels float64\[2, 5, 6\] must be"),
    (np.zeros((3, 5)), np.zeros((2, 5, 6), np.float32), np.zeros(2, int), "of one dtype"),
    (np.zeros((3, 5)), np.zeros((2, 5, 6)), np.zeros(3, int), r"group_sizes int64\[3\] must be.*each of the 2"),
    (np.zeros((3, 5)), np.zeros((2, 5, 6)), np.zeros(2), "group_sizes float64"),
])
def test_bad_arguments_are_named(x, kernels, sizes, words):
    with pytest.raises(ValueError, match=words):
        grouped_matmul(x, kernels, sizes)


def test_an_unknown_implementation_is_named():
    with pytest.raises(ValueError, match="implementation='loop' must be None or one of blocks, ragged, reference"):
        grouped_matmul(np.zeros((3, 5)), np.zeros((2, 5, 6)), np.zeros(2, int), implementation="loop")
