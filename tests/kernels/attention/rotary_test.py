import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import Rotary, rotate

POSITIONS = np.array([[0, 1, 2, 3, 50], [7, 6, 5, 2047, 0]], np.int32)


def heads(seed=0, head_dim=16):
    return np.random.default_rng(seed).standard_normal((*POSITIONS.shape, 3, head_dim), np.float32)


def turned(x, layout, base=10_000.0, power=0.0):
    """Rotation as a product of complex numbers in float64; pair i is also scaled by zeta_i ** power."""
    b, t, n, h = x.shape
    split = np.stack([x[..., :h // 2], x[..., h // 2:]], -1)
    pairs = x.reshape(split.shape) if layout == "interleaved" else split
    i = np.arange(h // 2)
    angle = POSITIONS[..., None, None] * base ** (-i / (h / 2))
    zeta = (2 * i + 0.4 * h) / (1.4 * h)
    z = (pairs[..., 0] + 1j * pairs[..., 1].astype(np.float64)) * np.exp(1j * angle) * zeta**power
    parts = np.stack([z.real, z.imag], -1)
    return parts.reshape(x.shape) if layout == "interleaved" else np.concatenate([parts[..., 0], parts[..., 1]], -1)


@pytest.mark.quick
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 3e-4), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_rotation_matches_complex_multiplication(layout, dtype, tolerance):
    x = jnp.asarray(heads(), dtype)
    got = rotate(x, POSITIONS, layout=layout, base=500.0)
    chex.assert_type(got, dtype)
    want = turned(np.asarray(x, np.float32), layout, base=500.0)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("inverse_scale, sign", [(False, 1), (True, -1)])
def test_xpos_scales_from_its_center(inverse_scale, sign):
    power = sign * (POSITIONS[..., None, None] - 1024) / 512
    got = rotate(heads(), POSITIONS, layout="interleaved", xpos_scale_base=512.0, xpos_center=1024,
                 inverse_scale=inverse_scale)
    np.testing.assert_allclose(got, turned(heads(), "interleaved", power=power), rtol=1e-3, atol=3e-4)


GRID = np.stack([POSITIONS, POSITIONS[::-1] + 3], -1)      # rows and columns


@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_on_a_grid_half_the_pairs_turn_by_rows_and_half_by_columns(layout):
    """Pair i < 4 turns as pair i of eight features on a line at the row, pair 4 + i likewise at the column."""
    x = heads()
    if layout == "interleaved":     # EVA-02: the pairs of a half are the features of a half
        want = [rotate(half, GRID[..., i], layout=layout) for i, half in enumerate(np.split(x, 2, -1))]
        want = np.concatenate(want, -1)
    else:                           # pairs (i, i + 8): the pairs of a half are two quarters
        quarters = np.split(x, 4, -1)
        row, column = (
            np.split(rotate(np.concatenate(quarters[i::2], -1), GRID[..., i], layout=layout), 2, -1) for i in (0, 1))
        want = np.concatenate([row[0], column[0], row[1], column[1]], -1)
    np.testing.assert_allclose(rotate(x, GRID, layout=layout), want, rtol=0, atol=1e-6)


def test_on_a_grid_logits_depend_on_both_distances_only():
    rng = np.random.default_rng(1)
    q, k = (np.broadcast_to(rng.standard_normal(16, np.float32), (1, 20, 1, 16)) for _ in "qk")
    grid = np.stack(np.divmod(np.arange(20, dtype=np.int32), 5), -1)[None]
    rotary = Rotary(grid, grid)
    logits = np.asarray(jnp.einsum("btnh,bsnh->ts", rotary.rotate_q(q), rotary.rotate_k(k)))
    moves = (grid[0][:, None] - grid[0][None]) @ [100, 1]
    for move in np.unique(moves):
        np.testing.assert_allclose(np.ptp(logits[moves == move]), 0, atol=1e-4)
    assert np.unique(logits.round(2)).size > 40


@pytest.mark.quick
def test_a_scale_stretches_the_positions():
    near = POSITIONS % 64
    np.testing.assert_allclose(rotate(heads(), near, position_scale=3.0), rotate(heads(), 3 * near), atol=1e-5)
    rotary = Rotary(4 * GRID, 4 * GRID, position_scale=0.25)
    for turn in (rotary.rotate_q, rotary.rotate_k):
        np.testing.assert_allclose(turn(heads()), rotate(heads(), GRID), atol=1e-6)


def test_partial_rotation_leaves_the_other_features():
    got = np.asarray(rotate(heads(), POSITIONS, rotary_dim=4))
    np.testing.assert_array_equal(got[..., 4:], heads()[..., 4:])
    np.testing.assert_allclose(got[..., :4], rotate(heads()[..., :4], POSITIONS), rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("form", [
    dict(layout="split"),
    dict(layout="interleaved", xpos_scale_base=512.0, xpos_center=1024),
])
def test_logits_depend_on_the_distance_only(form):
    rng = np.random.default_rng(1)
    q, k = (np.broadcast_to(rng.standard_normal(16, np.float32), (1, 40, 1, 16)) for _ in "qk")
    positions = 100 + np.arange(40, dtype=np.int32)[None]
    rotary = Rotary(positions, positions, **form)
    logits = np.asarray(jnp.einsum("btnh,bsnh->ts", rotary.rotate_q(q), rotary.rotate_k(k)))
    for distance in range(-39, 40):
        np.testing.assert_allclose(np.ptp(np.diagonal(logits, distance)), 0, atol=1e-4)
    assert np.ptp(logits) > 1


def test_xpos_center_cancels():
    positions = np.arange(30, dtype=np.int32)[None]
    x = np.random.default_rng(2).standard_normal((1, 30, 2, 8), np.float32)

    def logits(center):
        rotary = Rotary(positions, positions, layout="interleaved", xpos_scale_base=512.0, xpos_center=center)
        return jnp.einsum("btnh,bsnh->bnts", rotary.rotate_q(x), rotary.rotate_k(x))

    np.testing.assert_allclose(logits(0), logits(15), rtol=1e-4, atol=1e-4)


def test_rotary_passes_through_jit_as_a_pytree():
    rotary = Rotary(POSITIONS, POSITIONS, layout="interleaved")
    got = jax.jit(lambda rotary, x: rotary.rotate_q(x))(rotary, heads())
    np.testing.assert_allclose(got, rotary.rotate_q(heads()), atol=1e-5)
    assert len(jax.tree.leaves(rotary)) == 2


@pytest.mark.parametrize("change, words", [
    (dict(rotary_dim=3), "rotary_dim=3 must be even"),
    (dict(rotary_dim=18), "at most head_dim=16"),
    (dict(layout="halves"), "layout='halves' must be"),
    (dict(positions=POSITIONS[:1]), r"\[1, 5\] must be integers of shape \[2, 5\]"),
    (dict(positions=POSITIONS.astype(np.float32)), "float32"),
    (dict(positions=GRID, rotary_dim=6), "rotary_dim=6 must be a multiple of 4"),
    (dict(positions=GRID, xpos_scale_base=512.0), r"xpos_scale_base=512.0 needs positions \[B, T\]"),
    (dict(positions=np.zeros((2, 5, 3), np.int32)), r"\[2, 5, 3\] must be"),
])
def test_bad_arguments_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        rotate(heads(), **(dict(positions=POSITIONS) | change))
