"""Linear maps over several dimensions, their initial spread, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import Linear, axes_of, dropout, init_params, unbox, xavier

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("size_in, size_out", [((6,), (4,)), ((6,), (2, 3)), ((2, 3), (4,))])
def test_linear_matches_einsum(size_in, size_out):
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((5, 7, *size_in), size_in + size_out, size_out))
    module = Linear(size_in, size_out, ("embed",) * len(size_in) + ("mlp",) * len(size_out))
    got = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    letters_in, letters_out = "ij"[:len(size_in)], "kl"[:len(size_out)]
    equation = f"bt{letters_in},{letters_in}{letters_out}->bt{letters_out}"
    want = np.einsum(equation, x.astype(np.float64), kernel) + bias
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_initial_spread_counts_all_contracted_dimensions():
    def spread(size_in, size_out, **kwargs):
        module = Linear(size_in, size_out, ("embed",) * (len(size_in) + len(size_out)), **kwargs)
        params = jax.jit(lambda key: unbox(init_params(module, key, jnp.zeros((1, *size_in)))))(jax.random.key(0))
        assert not np.any(params["bias"])
        return float(params["kernel"].std())

    # 20,000 draws: the standard deviation of a measured std is 0.5 %.
    assert spread((100,), (8, 25)) == pytest.approx(100**-0.5, rel=0.02)
    assert spread((8, 25), (100,)) == pytest.approx(200**-0.5, rel=0.02)
    assert spread((100,), (8, 25), gain=3.0) == pytest.approx(3 * 100**-0.5, rel=0.02)
    assert spread((8, 25), (100,), kernel_init=xavier, gain=2.0) == pytest.approx(2 * (2 / 300)**0.5, rel=0.02)


def test_product_of_bfloat16_factors_may_stay_in_float32():
    kernel = np.random.default_rng(0).normal(size=(6, 4)).astype(jnp.bfloat16)
    x = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(jnp.bfloat16)
    fields = dict(names=("embed", "vocab"), use_bias=False, dtype=jnp.bfloat16)
    wide = Linear((6,), (4,), out_dtype=jnp.float32, **fields).apply({"params": {"kernel": kernel}}, x)
    want = x.astype(np.float64) @ kernel.astype(np.float64)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, want, rtol=1e-6, atol=1e-6)
    assert Linear((6,), (4,), **fields).apply({"params": {"kernel": kernel}}, x).dtype == jnp.bfloat16


def test_parameters_carry_the_names_of_their_dimensions():
    module = Linear((4,), (2, 3), ("embed", "heads", "head_dim"))
    boxed = init_params(module, jax.random.key(0), jnp.zeros((1, 4)))
    assert axes_of(boxed) == {"kernel": ("embed", "heads", "head_dim"), "bias": ("heads", "head_dim")}


def test_dropout():
    x = jnp.ones((100, 100), jnp.bfloat16)
    y = dropout(x, 0.25, jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    assert set(np.unique(y.astype(np.float32))) == {0.0, np.float32(jnp.bfloat16(4 / 3))}
    assert float((y == 0).mean()) == pytest.approx(0.25, abs=0.02)          # 4.6 standard deviations of 10,000 draws
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
