import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import Rotary, turning

POSITIONS = np.array([[0, 1, 4095, 4096, 65_535, 2**24 - 1, -1, -70_000]], np.int32)


def make(layout="split", **form):
    return Rotary(POSITIONS, POSITIONS, layout=layout, **form)


@pytest.mark.quick
@pytest.mark.parametrize("base, scale", [(10_000.0, 1.0), (500_000.0, 2 / 3)])
def test_angles_are_exact_at_large_positions(base, scale):
    constants = turning.constants(make(base=base, position_scale=scale), 96)
    assert constants.shape == (48, 5)
    cos, sin = jax.jit(turning.cos_sin)(constants, POSITIONS)
    angle = scale * POSITIONS * base ** (-np.arange(48)[:, None] / 48)
    np.testing.assert_allclose(cos, np.cos(angle), rtol=0, atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angle), rtol=0, atol=1e-6)


def test_rows_turn_the_first_half_of_the_pairs_and_columns_the_second():
    grid = np.stack([POSITIONS, POSITIONS[:, ::-1]], -1)
    constants = turning.constants(Rotary(grid, grid), 24)
    cos, _ = turning.cos_sin(constants, grid[0].T)
    frequency = 10_000.0 ** (-np.arange(6)[:, None] / 6)
    want = np.concatenate([grid[..., 0] * frequency, grid[..., 1] * frequency])
    np.testing.assert_allclose(cos[:12], np.cos(want), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(cos[12:], 1)      # filled up to whole registers


@pytest.mark.parametrize("head_dim, rotary_dim", [(64, None), (72, None), (20, 12), (9, 2)])
@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_turning_in_the_kernel_order_is_rotary(layout, head_dim, rotary_dim):
    rotary = make(layout, rotary_dim=rotary_dim, xpos_scale_base=512.0, xpos_center=3)
    rotary = dataclasses.replace(rotary, q_positions=POSITIONS[:, :3])
    x = np.random.default_rng(0).standard_normal((1, 3, 2, head_dim), np.float32)
    arranged = turning.arrange(jnp.asarray(x), rotary)
    assert arranged.shape[-1] % turning.ALIGN == 0
    np.testing.assert_array_equal(turning.restore(arranged, rotary, head_dim), x)

    constants = turning.constants(rotary, head_dim)
    cos, sin = turning.cos_sin(constants, rotary.q_positions)
    factor = 2 ** turning.scale_exponents(constants, rotary.q_positions - 3)
    heads = [turning.scale(turning.turn(arranged[0, :, n].T, cos, sin), factor).T for n in range(2)]
    got = turning.restore(jnp.stack(heads, 1)[None], rotary, head_dim)
    np.testing.assert_allclose(got, rotary.rotate_q(x), rtol=1e-5, atol=5e-4 * np.abs(got).max())


def test_scales_stay_in_range_at_any_distance():
    constants = turning.constants(make(xpos_scale_base=512.0), 64)
    exponents = turning.scale_exponents(constants, np.array([[-(2**24), 2**24]]))
    assert np.isfinite(2.0**exponents).all() and (np.abs(exponents) <= turning.LIMIT).all()
