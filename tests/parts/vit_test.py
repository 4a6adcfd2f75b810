"""The vision transformer against NumPy: order of pixels and tokens, class token, norms, and the last blocks apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.layers import BlockConfig, init_params, unbox
from mmjax.parts.patches import drop_patches
from mmjax.parts.visual import encode_frames
from mmjax.parts.vit import ViT, ViTConfig, pooled_features

CLIP = ViTConfig(image_size=8, patch_size=4, num_layers=3, block=BlockConfig(8, 2, 12, activation="quick_gelu"))
PLAIN = dataclasses.replace(CLIP, class_token=False, patch_bias=True, pre_norm=False, final_norm=False)
EVA02 = ViTConfig(image_size=12, patch_size=4, num_layers=2, block=BlockConfig(8, 2, 12, activation="swiglu"),
                  patch_bias=True, pre_norm=False, rotary_grid=16, patch_dropout=0.5)
AIM = ViTConfig(image_size=12, patch_size=4, num_layers=2, block=BlockConfig(8, 2, 12), class_token=False,
                patch_bias=True, pre_norm=False, patch_norm=True, positions="sincos")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


def random_params(config: ViTConfig):
    rng, key = np.random.default_rng(0), jax.random.key(0)
    shapes = jax.eval_shape(lambda: unbox(init_params(ViT(config), key, IMAGES)))
    return jax.tree.map(lambda a: 0.4 * rng.normal(size=a.shape).astype(np.float32), shapes)


def by_hand(c: ViTConfig, params, image, kept=None):
    """Tokens of one image: patches from left to right and from top to bottom, each flattened the same way; all of them
    or those that are kept."""
    p, side = oracle.float64(params), c.patch_size
    pixels = (image / 255.0 - np.array(c.pixel_mean)) / np.array(c.pixel_std)
    patches = []
    for top in range(0, c.image_size, side):
        for left in range(0, c.image_size, side):
            patches.append([pixels[top + i, left + j, k] for i in range(side) for j in range(side) for k in range(3)])
    kept = np.arange(len(patches)) if kept is None else kept
    x = oracle.linear(p["patch_embed"], np.array(patches))[kept]
    table = p["position_embed"]
    x = x + table[kept + len(table) - len(patches)]
    if c.class_token:
        x = np.concatenate([p["class_embed"][None] + table[:1], x])
    if c.pre_norm:
        x = oracle.norm(p["pre_norm"], x)
    for i in range(c.num_layers):
        x = oracle.block(oracle.layer(p["blocks"], i), x, oracle.everything(len(x)), c.block.activation,
                         rotate=rotation(c, kept) if c.rotary_grid else None)
    return oracle.norm(p["final_norm"], x) if c.final_norm else x


def rotation(c: ViTConfig, kept):
    """Turns the first half of each head by the row and the second by the column, on a grid stretched to `rotary_grid`;
    the class token stays."""
    stretched = np.stack(np.divmod(kept, c.grid)) * c.rotary_grid / c.grid
    row, column = np.concatenate([np.zeros((2, int(c.class_token))), stretched], axis=1)

    def turn(x):
        upper, lower = np.split(x, 2, axis=-1)
        return np.concatenate([oracle.turn(upper, row, "interleaved"), oracle.turn(lower, column, "interleaved")], -1)

    return lambda q, k: (turn(q), turn(k))


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
def test_a_key_leaves_patches_out_and_the_others_keep_their_places():
    images = np.random.default_rng(2).integers(0, 256, (2, 12, 12, 3), np.uint8)
    rng, key = np.random.default_rng(0), jax.random.key(3)
    shapes = jax.eval_shape(lambda: unbox(init_params(ViT(EVA02), key, images)))
    params = jax.tree.map(lambda a: 0.4 * rng.normal(size=a.shape).astype(np.float32), shapes)
    run = jax.jit(lambda params, key: ViT(EVA02).apply({"params": params}, images, key))
    got = run(params, key)
    _, kept = drop_patches(jnp.zeros((2, 9, 8)), 0.5, jax.random.split(key)[0])
    assert got.shape == (2, 5, 8) and run(params, None).shape == (2, 10, 8)
    for image, which, tokens in zip(images, np.asarray(kept), got, strict=True):
        np.testing.assert_allclose(tokens, by_hand(EVA02, params, image, which), rtol=2e-5, atol=2e-5)


@pytest.mark.quick
def test_with_a_prefix_later_patches_are_not_seen_by_earlier_ones():
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (2, 12, 12, 3), np.uint8)
    changed = images.copy()
    changed[:, 8:, 4:] = 255 - changed[:, 8:, 4:]           # patches 7 and 8 of 0 .. 8
    params = jax.jit(lambda: unbox(init_params(ViT(AIM), jax.random.key(0), images)))()
    run = jax.jit(lambda images, prefix: ViT(AIM).apply({"params": params}, images, prefix=prefix))
    prefix = np.array([3, 8], np.int32)
    moved = np.abs(run(images, prefix) - run(changed, prefix)).max(-1) > 1e-6
    np.testing.assert_array_equal(moved, [[False] * 7 + [True] * 2, [True] * 9])    # patch 7 is in the second's prefix
    assert "position_embed" not in params


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
    with pytest.raises(ValueError, match="unknown positions 'fixed'; choose from learned, sincos"):
        ViTConfig(positions="fixed")
    with pytest.raises(ValueError, match="patch_dropout=1.0 must be at least 0 and below 1"):
        ViTConfig(patch_dropout=1.0)
    with pytest.raises(ValueError, match=r"num_last_layers=25 must lie in 0..num_layers=24"):
        ViTConfig(num_last_layers=25)
