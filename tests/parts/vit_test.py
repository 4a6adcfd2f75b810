"""The vision transformer against NumPy: order of pixels and tokens, class token, norms, and the last blocks apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.layers import BlockConfig, init_params, unbox
from mmjax.parts.visual import encode_frames
from mmjax.parts.patches import patchify
from mmjax.parts.vit import ViT, ViTConfig, pooled_features

CLIP = ViTConfig(image_size=8, patch_size=4, num_layers=3, block=BlockConfig(8, 2, 12, activation="quick_gelu"))
PLAIN = dataclasses.replace(CLIP, class_token=False, patch_bias=True, pre_norm=False, final_norm=False)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


def random_params(config: ViTConfig):
    rng, key = np.random.default_rng(0), jax.random.key(0)
    shapes = jax.eval_shape(lambda: unbox(init_params(ViT(config), key, IMAGES)))
    return jax.tree.map(lambda a: 0.4 * rng.normal(size=a.shape).astype(np.float32), shapes)


def by_hand(c: ViTConfig, params, image):
    """Tokens of one image: patches from left to right and from top to bottom, each flattened the same way."""
    p, side = oracle.float64(params), c.patch_size
    pixels = (image / 255.0 - np.array(c.pixel_mean)) / np.array(c.pixel_std)
    patches = []
    for top in range(0, c.image_size, side):
        for left in range(0, c.image_size, side):
            patches.append([pixels[top + i, left + j, k] for i in range(side) for j in range(side) for k in range(3)])
    x = oracle.linear(p["patch_embed"], np.array(patches))
    if c.class_token:
        x = np.concatenate([p["class_embed"][None], x])
    x = x + p["position_embed"]
    if c.pre_norm:
        x = oracle.norm(p["pre_norm"], x)
    for i in range(c.num_layers):
        x = oracle.block(oracle.layer(p["blocks"], i), x, oracle.everything(len(x)), c.block.activation)
    return oracle.norm(p["final_norm"], x) if c.final_norm else x


@pytest.mark.quick
@pytest.mark.parametrize("config", [CLIP, PLAIN], ids=["clip", "plain"])
def test_vit_matches_numpy(config):
    params = random_params(config)
    got = jax.jit(ViT(config).apply)({"params": params}, IMAGES)
    assert got.shape == (2, config.num_tokens, 8) == (2, 5 if config.class_token else 4, 8)
    for image, tokens in zip(IMAGES, got, strict=True):
        np.testing.assert_allclose(tokens, by_hand(config, params, image), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("num_last", [1, 3])
def test_last_blocks_are_the_same_tower_in_two_sub_trees(num_last):
    params = random_params(CLIP)
    config = dataclasses.replace(CLIP, num_last_layers=num_last)
    split = {k: v for k, v in params.items() if k != "blocks"}
    split["last_blocks"] = jax.tree.map(lambda a: a[3 - num_last:], params["blocks"])
    if num_last < 3:
        split["blocks"] = jax.tree.map(lambda a: a[:3 - num_last], params["blocks"])
    assert jax.tree.map(jnp.shape, split) == jax.tree.map(jnp.shape, random_params(config))
    whole, parted = (jax.jit(ViT(c).apply)({"params": p}, IMAGES) for c, p in ((CLIP, params), (config, split)))
    np.testing.assert_allclose(parted, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
def test_patchify_keeps_rows_columns_and_channels_in_order():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    got = patchify(jnp.asarray(images), 2)
    assert got.shape == (2, 6, 12)
    for n, (top, left) in enumerate((t, x) for t in (0, 2) for x in (0, 2, 4)):
        np.testing.assert_array_equal(got[:, n], images[:, top:top + 2, left:left + 2].reshape(2, 12))


def test_every_frame_of_every_item_is_encoded_alone_and_pooled_by_its_mean():
    params, tower = random_params(CLIP), ViT(CLIP, parent=None)
    images = np.random.default_rng(1).integers(0, 256, (3, 2, 8, 8, 3), np.uint8)
    features = jax.jit(lambda x: encode_frames(tower, params, x))(images)
    assert features.shape == (3, 2, 5, 8)
    alone = jax.jit(lambda x: (tower.apply({"params": params}, x), pooled_features(tower, params, x)))
    tokens, pooled = alone(images[2])
    np.testing.assert_allclose(features[2], tokens, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pooled, np.asarray(tokens).mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"images \[2, 6, 6, 3\] must be \[B, 8, 8, 3\]; image_size"):
        jax.eval_shape(lambda: ViT(CLIP).apply({"params": random_params(CLIP)}, jnp.zeros((2, 6, 6, 3), jnp.uint8)))
    with pytest.raises(ValueError, match="image_size=224 must be a multiple of patch_size=15"):
        ViTConfig(patch_size=15)
    with pytest.raises(ValueError, match=r"num_last_layers=25 must lie in 0..num_layers=24"):
        ViTConfig(num_last_layers=25)
