"""The token table as input and as output head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import Embed, axes_of, init_params, unbox

pytestmark = pytest.mark.quick

TABLE = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def test_rows_and_logits():
    ids, x = np.array([[4, 0, 4]]), np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    embed, variables = Embed(5, 4), {"params": {"table": TABLE}}
    np.testing.assert_array_equal(embed.apply(variables, ids), TABLE[ids])
    np.testing.assert_allclose(embed.apply(variables, x, method="attend"), x @ TABLE.T, rtol=1e-5, atol=1e-6)


def test_bfloat16_compute_keeps_logits_and_table_gradients_in_float32():
    ids = np.zeros((1, 1000), np.int32)
    embed = Embed(5, 4, dtype=jnp.bfloat16)
    rows = lambda table: embed.apply({"params": {"table": table}}, ids)  # noqa: E731
    assert rows(TABLE).dtype == jnp.bfloat16
    gradient = jax.grad(lambda table: rows(table).astype(jnp.float32).sum())(jnp.asarray(TABLE))
    np.testing.assert_array_equal(gradient[0], 1000)            # in bfloat16 a sum of ones stops at 256
    logits = embed.apply({"params": {"table": TABLE}}, TABLE, method="attend")
    assert logits.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(TABLE, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(logits, rounded @ rounded.T, rtol=1e-6, atol=1e-6)


def test_an_id_outside_the_table_gives_nan_not_another_row():
    out = Embed(5, 4).apply({"params": {"table": TABLE}}, np.array([4, 5]))
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()


def test_initial_spread_and_names():
    boxed = init_params(Embed(500, 40, ("patch", "embed"), std=0.3), jax.random.key(0), np.zeros((1,), np.int32))
    assert axes_of(boxed) == {"table": ("patch", "embed")}
    assert float(unbox(boxed)["table"].std()) == pytest.approx(0.3, rel=0.02)
