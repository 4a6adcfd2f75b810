"""Gated cross-attention: the identity at the start, NumPy's result once the gates are open."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.kernels.attention import IntervalMask
from mmjax.kernels.attention import mask as masks
from mmjax.layers import KVCache, init_params, unbox
from mmjax.parts.gated_xattn import GatedXAttn, GatedXAttnConfig

pytestmark = pytest.mark.quick

CONFIG = GatedXAttnConfig(embed_dim=8, visual_dim=6, num_heads=2, head_dim=5, mlp_dim=12)
MASK = masks.per_image(np.array([[-1, 0, 0, 1], [-1, -1, -1, -1]], np.int32), 3)
RNG = np.random.default_rng(0)
Y, VISUAL = RNG.normal(size=(2, 4, 8)).astype(np.float32), RNG.normal(size=(2, 6, 6)).astype(np.float32)


def random_params(**gates):
    rng, key = np.random.default_rng(1), jax.random.key(0)
    shapes = jax.eval_shape(lambda: unbox(init_params(GatedXAttn(CONFIG), key, Y, VISUAL, MASK)))
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
    return params | {name: np.float32(value) for name, value in gates.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_layer_is_the_identity_bit_for_bit(dtype):
    layer = GatedXAttn(GatedXAttnConfig(8, 6, 2, 5, 12, dtype=dtype))
    y = Y.astype(dtype)
    params = jax.jit(lambda key: unbox(init_params(layer, key, y, VISUAL, MASK)))(jax.random.key(0))
    assert params["attention_gate"] == params["mlp_gate"] == 0
    got = jax.jit(layer.apply)({"params": params}, y, VISUAL, MASK)
    assert got.dtype == y.dtype
    np.testing.assert_array_equal(got, y)


def test_gate_init_opens_the_gates():
    layer = GatedXAttn(GatedXAttnConfig(8, 6, 2, 5, 12, gate_init=0.5))
    params = jax.jit(lambda key: unbox(init_params(layer, key, Y, VISUAL, MASK)))(jax.random.key(0))
    assert params["attention_gate"] == params["mlp_gate"] == 0.5


def test_open_gates_match_numpy():
    params = random_params(attention_gate=0.7, mlp_gate=-1.1)
    got = jax.jit(GatedXAttn(CONFIG).apply)({"params": params}, Y, VISUAL, MASK)
    p, keys = oracle.float64(params), {0: range(0), 1: range(0, 3), 2: range(0, 3), 3: range(3, 6)}
    for row in range(2):
        y, visible = np.float64(Y[row]), keys.get if row == 0 else lambda t: range(0)
        normed, source = oracle.norm(p["attention_norm"], y), np.float64(VISUAL[row])
        y = y + np.tanh(0.7) * oracle.attention(p["attention"], normed, visible, source=source)
        y = y + np.tanh(-1.1) * oracle.mlp(p["mlp"], oracle.norm(p["mlp_norm"], y), "squared_relu")
        np.testing.assert_allclose(got[row], y, rtol=1e-4, atol=2e-5)


def test_text_without_an_image_gets_exactly_nothing_from_attention():
    params = random_params(attention_gate=0.7, mlp_gate=0.0)
    run = jax.jit(lambda y, visual: GatedXAttn(CONFIG).apply({"params": params}, y, visual, MASK))
    got = np.asarray(run(Y, VISUAL))
    blind = np.array([[True, False, False, False], [True] * 4])
    np.testing.assert_array_equal(got[blind], Y[blind])
    assert np.all(np.any(got != Y, axis=-1)[~blind])
    gradient = jax.jit(jax.grad(lambda visual: jnp.square(run(Y, visual)[1]).sum()))(VISUAL)
    assert not np.any(gradient)


def test_kept_keys_and_values_give_the_same():
    """All tokens together, and one by one as decoding has them."""
    params = {"params": random_params()}
    layer = GatedXAttn(CONFIG)
    run = jax.jit(lambda *args: layer.apply(params, *args, 1, method="attend_cached"))
    k, v = jax.jit(lambda visual: layer.apply(params, visual, method="project_kv"))(VISUAL)
    b, s = k.shape[:2]
    cache = KVCache(*(jnp.full((2, b, s, x[0, 0].size), jnp.nan).at[1].set(x.reshape(b, s, -1)) for x in (k, v)),
                    jnp.full(b, s))
    want = jax.jit(lambda y, visual: layer.apply(params, y, visual, MASK))(Y, VISUAL)
    np.testing.assert_allclose(run(Y, MASK, cache), want, rtol=1e-6, atol=1e-6)
    for t in range(Y.shape[1]):
        mask = IntervalMask(*(jnp.asarray(x)[:, t : t + 1] for x in MASK))
        np.testing.assert_allclose(run(Y[:, t : t + 1], mask, cache), want[:, t : t + 1], rtol=1e-6, atol=1e-6)

