"""Norms against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.layers import Norm, l2_normalize

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("kind, use_bias", [("layer", True), ("layer", False), ("rms", True)])
def test_norm_matches_numpy(kind, use_bias):
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.normal(size=(2, 5, 6)).astype(np.float32)
    params = {"scale": rng.normal(size=6).astype(np.float32)}
    if kind == "layer" and use_bias:
        params["bias"] = rng.normal(size=6).astype(np.float32)
    got = Norm(6, kind, 1e-3, use_bias).apply({"params": params}, x)
    want = oracle.norm(oracle.float64(params), x.astype(np.float64), 1e-3, kind)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_statistics_of_bfloat16_are_taken_in_float32():
    x = (100 + jnp.arange(64.0).reshape(1, 64)).astype(jnp.bfloat16)        # bfloat16 sums would stop at 2^8 steps
    got = Norm(64, dtype=jnp.bfloat16).apply({"params": {"scale": np.ones(64), "bias": np.zeros(64)}}, x)
    assert got.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(got.astype(np.float32), (exact - exact.mean()) / exact.std(), atol=8e-3)


def test_l2_normalize():
    x = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    want = [[row / np.sqrt(sum(float(v) ** 2 for v in row))] for row in x]
    np.testing.assert_allclose(l2_normalize(x), np.concatenate(want), rtol=1e-6)


def test_l2_normalize_of_zeros_is_zero_with_a_finite_gradient():
    value, gradient = jax.value_and_grad(lambda x: l2_normalize(x).sum())(jnp.zeros(4))
    assert value == 0 and np.isfinite(gradient).all()
