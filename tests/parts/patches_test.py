"""Patches in order, fixed positions entry by entry, and the ones that are left out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.parts.patches import drop_patches, normalize_pixels, patchify, sincos_positions


@pytest.mark.quick
def test_patchify_keeps_rows_columns_and_channels_in_order():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    got = patchify(jnp.asarray(images), 2)
    assert got.shape == (2, 6, 12)
    for n, (top, left) in enumerate((t, x) for t in (0, 2) for x in (0, 2, 4)):
        np.testing.assert_array_equal(got[:, n], images[:, top:top + 2, left:left + 2].reshape(2, 12))


@pytest.mark.quick
def test_pixels_are_normalised_per_channel():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8)
    got = normalize_pixels(jnp.asarray(images), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 2.0))):
        np.testing.assert_allclose(got[..., channel], (images[..., channel] / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_fixed_positions_are_sines_of_the_column_then_of_the_row():
    got = sincos_positions(3, 8)
    for n in range(9):
        row, column = divmod(n, 3)
        want = [f(place * frequency) for place in (column, row) for f in (math.sin, math.cos)
                for frequency in (1.0, 10_000**-0.5)]
        np.testing.assert_allclose(got[n], want, atol=1e-6)
    with pytest.raises(ValueError, match="embed_dim=6 must be a multiple of 4"):
        sincos_positions(3, 6)


@pytest.mark.quick
def test_dropping_keeps_a_share_of_each_image_in_order():
    x = np.arange(3 * 10 * 2, dtype=np.float32).reshape(3, 10, 2)
    got, kept = jax.jit(lambda x, key: drop_patches(x, 0.35, key))(x, jax.random.key(0))
    assert got.shape == (3, 6, 2) and kept.shape == (3, 6)
    assert (np.diff(kept) > 0).all() and kept.min() >= 0 and kept.max() < 10
    for image in range(3):
        np.testing.assert_array_equal(got[image], x[image, kept[image]])
    assert len({tuple(row) for row in np.asarray(kept)}) > 1
    one, _ = drop_patches(jnp.asarray(x), 0.99, jax.random.key(0))
    assert one.shape == (3, 1, 2)
