"""The system `clip` on tiny towers, and its evaluations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_systems

from mmjax.layers import BlockConfig
from mmjax.models import ClipConfig, build
from mmjax.parallel import make_mesh
from mmjax.parts.text_tower import TextTowerConfig
from mmjax.parts.vision_head import VisionHeadConfig
from mmjax.parts.vision_presets import PRESETS

CONFIG = ClipConfig(
    vision=tiny_systems.VISION, head=VisionHeadConfig(16, 24),
    text=TextTowerConfig(tiny_systems.VOCAB, 12, 2, BlockConfig(32, 4, 72, activation="quick_gelu"), output_dim=24))


@functools.cache
def model_and_params(loss="softmax"):
    model = build("clip", dataclasses.replace(CONFIG, loss=loss))
    return model, tiny_systems.random_params(model)


def batch(rows=8):
    return tiny_systems.make_batch("flamingo", [["i" + "t" * (3 + r % 5)] for r in range(rows)], 10, 1)


def numpy_loss(model, params, batch, form):
    """From the towers' own embeddings, by NumPy."""
    images = np.asarray(model.image_features(params, batch.images[:, 0, 0]), np.float64)
    texts = np.asarray(model.text_features(params, batch), np.float64)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    z = np.exp(float(params["log_scale"])) * images @ texts.T
    if form == "softmax":
        return np.mean([np.log(np.exp(s).sum(1)) - np.diag(s) for s in (z, z.T)])
    signs = 2 * np.eye(len(z)) - 1
    return np.log1p(np.exp(-signs * (z + float(params["bias"])))).sum() / len(z)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_loss_of_the_towers_embeddings(form):
    model, params = model_and_params(form)
    loss, metrics = jax.jit(model.loss)(params, batch())
    np.testing.assert_allclose(loss, numpy_loss(model, params, batch(), form), rtol=1e-5)
    assert metrics["tokens"] == 8 and 0 <= metrics["accuracy"] <= 1


def test_eight_devices_equal_one():
    model, params = model_and_params()
    grad = jax.jit(jax.value_and_grad(lambda p, b: model.loss(p, b)[0]))
    want_loss, want = grad(params, batch())
    with jax.set_mesh(make_mesh({"data": 4, "fsdp": 2})):
        got_loss, got = jax.jit(grad)(params, batch())
    np.testing.assert_allclose(got_loss, want_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * max(np.abs(b).max(), 1)), got, want)


def test_rows_that_are_no_pairs_change_nothing():
    model, params = model_and_params()
    run = jax.jit(model.loss)
    want, _ = run(params, batch(6))
    rows = [["i" + "t" * (3 + r % 5)] for r in range(6)]
    odd = tiny_systems.make_batch("flamingo", [*rows, ["ttt"], ["tt", "it"]], 10, 1)
    kept = odd._replace(tokens=np.concatenate([batch(6).tokens, odd.tokens[6:]]),
                        images=np.concatenate([batch(6).images, odd.images[6:]]))
    got, metrics = run(params, kept)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert metrics["tokens"] == 6


def test_padding_does_not_change_a_text():
    model, params = model_and_params()
    short, long = (tiny_systems.make_batch("flamingo", [["itttt"]], t, 1) for t in (5, 9))
    long = long._replace(tokens=np.pad(short.tokens, ((0, 0), (0, 4))))
    np.testing.assert_allclose(model.text_features(params, short), model.text_features(params, long), atol=1e-6)


@pytest.mark.quick
def test_what_it_cannot_do_is_said():
    model, params = model_and_params()
    with pytest.raises(ValueError, match="'clip' has no language model and cannot generate; evaluate it with kind="):
        model.prefill(params, batch(), 20)
    with pytest.raises(ValueError, match="set images_per_row=1"):
        model.loss(params, batch()._replace(images=np.zeros((8, 0, 1, 8, 8, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"images have 24 numbers \(head.output_dim\) and those of texts 32"):
        dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, output_dim=None))


def test_published_sizes_have_their_parameters():
    """CLIP's counts (arXiv:2103.00020; openai/CLIP), by shapes alone."""
    for name, width, heads, dim, count in (("clip_b32", 512, 8, 512, 151_277_313),
                                           ("clip_b16", 512, 8, 512, 149_620_737),
                                           ("clip_l14", 768, 12, 768, 427_616_513),
                                           ("clip_l14_336", 768, 12, 768, 427_944_193)):
        preset = PRESETS[name]
        text = TextTowerConfig(49_408, 77, 12, BlockConfig(width, heads, 4 * width, activation="quick_gelu"),
                               output_dim=dim)
        model = build("clip", ClipConfig(preset.tower, preset.head, text))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == count
        assert jnp.shape(shapes["log_scale"]) == ()
