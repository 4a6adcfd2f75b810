"""The Perceiver resampler against NumPy, its number of outputs, and time embeddings against np.interp."""

import dataclasses

import jax
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.layers import init_params, unbox
from mmjax.parts.perceiver import PerceiverConfig, PerceiverResampler, interpolate_frames

CONFIG = PerceiverConfig(input_dim=6, embed_dim=8, num_latents=3, num_layers=2, num_heads=2, head_dim=5, mlp_dim=12,
                         num_frames=2)


def random_params(config: PerceiverConfig):
    rng, key = np.random.default_rng(0), jax.random.key(0)
    features = np.zeros((1, 1, 1, config.input_dim), np.float32)
    shapes = jax.eval_shape(lambda: unbox(init_params(PerceiverResampler(config), key, features)))
    return jax.tree.map(lambda a: 0.5 * rng.normal(size=a.shape).astype(np.float32), shapes)


def by_hand(params, features):
    """One visual item [F, P, input_dim]; time embeddings in order, no position inside a frame."""
    p = oracle.float64(params)
    x = oracle.linear(p["input_proj"], np.float64(features)) + p["time_embed"][:len(features), None]
    x, z = x.reshape(-1, x.shape[-1]), p["latents"]
    for i in range(2):
        layer = oracle.layer(p["layers"], i)
        latents = oracle.norm(layer["latent_norm"], z)
        source = np.concatenate([oracle.norm(layer["feature_norm"], x), latents])
        z = z + oracle.attention(layer["attention"], latents, oracle.everything(len(source)), source=source)
        z = z + oracle.mlp(layer["mlp"], oracle.norm(layer["mlp_norm"], z), "squared_relu")
    return oracle.norm(p["final_norm"], z)


@pytest.mark.quick
def test_resampler_matches_numpy():
    params = random_params(CONFIG)
    features = np.random.default_rng(1).normal(size=(2, 2, 4, 6)).astype(np.float32)
    got = jax.jit(PerceiverResampler(CONFIG).apply)({"params": params}, features)
    for row in range(2):
        np.testing.assert_allclose(got[row], by_hand(params, features[row]), rtol=1e-4, atol=2e-5)


@pytest.mark.quick
@pytest.mark.parametrize("frames, patches", [(1, 1), (1, 9), (8, 4), (30, 2)])
def test_number_of_outputs_is_that_of_latents(frames, patches):
    params = random_params(CONFIG)
    features = jax.ShapeDtypeStruct((2, frames, patches, 6), np.float32)
    out = jax.eval_shape(PerceiverResampler(CONFIG).apply, {"params": params}, features)
    assert out.shape == (2, 3, 8)


@pytest.mark.quick
def test_without_time_embeddings_or_projection():
    params = random_params(dataclasses.replace(CONFIG, input_dim=8, num_frames=0))
    assert set(params) == {"latents", "layers", "final_norm"}


@pytest.mark.quick
@pytest.mark.parametrize("known, frames", [(8, 30), (8, 9), (2, 5), (1, 4)])
def test_longer_videos_stretch_the_embeddings_linearly(known, frames):
    """Flamingo B.1.2: 8 learned embeddings at training, interpolated to 30 frames."""
    table = np.random.default_rng(0).normal(size=(known, 3)).astype(np.float32)
    got = jax.jit(interpolate_frames, static_argnums=1)(table, frames)
    at = np.linspace(0, known - 1, frames)
    want = np.stack([np.interp(at, np.arange(known), column) for column in table.T], axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("frames", [1, 3])
def test_shorter_videos_take_the_first_embeddings(frames):
    table = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    np.testing.assert_array_equal(interpolate_frames(table, frames), table[:frames])
