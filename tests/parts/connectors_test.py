"""The attentive pool against NumPy, and the places of inserted visual tokens against a loop."""

import jax
import numpy as np
import numpy_oracle as oracle
import pytest
import tiny_systems

from mmjax.layers import init_params, unbox
from mmjax.parts.connectors import AttentivePool, AttentivePoolConfig, insert_visual

pytestmark = pytest.mark.quick


def test_attentive_pool_matches_numpy():
    """Latents attend once to [projected features, latents]; no norm, residual or feed-forward."""
    config = AttentivePoolConfig(input_dim=6, embed_dim=8, num_latents=3, num_heads=2)
    features = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    rng, key = np.random.default_rng(1), jax.random.key(0)
    shapes = jax.eval_shape(lambda: unbox(init_params(AttentivePool(config), key, features)))
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
    assert set(params) == {"input_proj", "latents", "attention"}
    got = jax.jit(AttentivePool(config).apply)({"params": params}, features)
    p = oracle.float64(params)
    for row in range(2):
        source = np.concatenate([oracle.linear(p["input_proj"], np.float64(features[row])), p["latents"]])
        want = oracle.attention(p["attention"], p["latents"], oracle.everything(8), source=source)
        np.testing.assert_allclose(got[row], want, rtol=2e-5, atol=2e-5)


def test_visual_tokens_stand_in_their_slots():
    batch = tiny_systems.make_batch("kosmos1", [["titt", "it"], ["tt", "tit"]], num_tokens=24, num_images=2)
    r, rng = tiny_systems.NUM_LATENTS, np.random.default_rng(0)
    text, visual = rng.normal(size=(2, 24, 3)).astype(np.float32), rng.normal(size=(2, 2, r, 3)).astype(np.float32)
    got, want = insert_visual(text, visual, batch), text.copy()
    for row, t in np.argwhere(batch.slot_index >= 0):
        want[row, t] = visual[row, batch.image_index[row, t], batch.slot_index[row, t]]
    np.testing.assert_array_equal(got, want)
    assert (batch.slot_index >= 0).sum() == 3 * r
    np.testing.assert_array_equal(insert_visual(text, visual[:, :0], batch), text)


def test_uneven_heads_are_named():
    with pytest.raises(ValueError, match="embed_dim=10 must be a multiple of num_heads=4"):
        AttentivePoolConfig(6, 10, num_heads=4)
