import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.reference import reference

SCALE = 0.3


@functools.partial(jax.jit, static_argnames="soft_cap")
def run(q, k, v, bias, start, stop, soft_cap=None):
    return reference(q, k, v, mask=IntervalMask(start, stop), rotary=None, bias=bias, scale=SCALE, soft_cap=soft_cap)


@pytest.mark.quick
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape, bias_rows", [
    ((2, 5, 7, 4, 4, 3), 0),
    ((2, 3, 11, 4, 2, 5), 1),
    ((3, 1, 4, 3, 1, 2), 3),
])
def test_values_match_a_loop_over_queries(random_case, attention_loop, shape, bias_rows, dtype, tolerance):
    case = random_case(shape, bias_rows)
    case = case._replace(**{name: jnp.asarray(getattr(case, name), dtype) for name in "qkv"})
    got = run(*case[:-1])
    chex.assert_type(got, dtype)
    np.testing.assert_allclose(got.astype(jnp.float32), attention_loop(case, SCALE), rtol=tolerance, atol=tolerance)


@functools.partial(jax.jit, static_argnames="soft_cap")
def grads(q, k, v, bias, start, stop, d_out, soft_cap=None):
    """Gradients with respect to q, k, v and bias."""
    return jax.vjp(lambda *args: run(*args, start, stop, soft_cap), q, k, v, bias)[1](d_out)


@pytest.mark.parametrize("soft_cap", [None, 0.8])
@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_gradients_match_finite_differences(random_case, attention_loop, name, soft_cap):
    case = random_case((2, 5, 7, 4, 2, 3), bias_rows=1)
    got = grads(*case, soft_cap=soft_cap)[["q", "k", "v", "bias"].index(name)]
    rng, step = np.random.default_rng(1), 1e-5
    for _ in range(8):
        direction = rng.standard_normal(got.shape)
        up, down = (case._replace(**{name: getattr(case, name) + sign * step * direction}) for sign in (1, -1))
        rise = attention_loop(up, SCALE, soft_cap) - attention_loop(down, SCALE, soft_cap)
        slope = (rise * case.d_out).sum() / (2 * step)
        np.testing.assert_allclose((got * direction).sum(), slope, rtol=2e-5, atol=2e-5)


def test_queries_without_keys_give_exactly_zero(random_case):
    case = random_case((1, 4, 6, 2, 2, 3), bias_rows=1)
    start, stop = np.array([[2, 5, 0, 9]], np.int32), np.array([[2, 1, 6, 12]], np.int32)  # only query 2 sees keys
    out = np.asarray(run(*case[:4], start, stop))
    d_q, d_k, d_v, d_bias = jax.tree.map(np.asarray, grads(*case[:4], start, stop, case.d_out))
    chex.assert_tree_all_finite((out, d_q, d_k, d_v, d_bias))
    for rows in (out[:, [0, 1, 3]], d_q[:, [0, 1, 3]], d_bias[:, :, [0, 1, 3]]):
        np.testing.assert_array_equal(rows, 0)
    assert (out[:, 2] != 0).all()


def test_a_bias_of_minus_infinity_hides_a_key(random_case):
    case = random_case((1, 3, 5, 1, 1, 2), bias_rows=1)
    start, stop = np.zeros((1, 3), np.int32), np.full((1, 3), 5, np.int32)
    bias = np.zeros((1, 1, 3, 5), np.float32)
    bias[..., 3:] = -np.inf
    bias[:, :, 0] = -np.inf  # query 0 sees nothing at all
    got = run(case.q, case.k, case.v, bias, start, stop)
    want = run(case.q, case.k, case.v, None, start, np.array([[0, 3, 3]], np.int32))
    np.testing.assert_allclose(got, want, rtol=1e-6)
