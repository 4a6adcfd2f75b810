"""Convolution and pooling against loops, at odd sizes."""

import jax
import numpy as np
import pytest

from mmjax.layers.conv import average_pool, conv2d


@pytest.mark.quick
@pytest.mark.parametrize("stride, num_groups, pad", [(1, 1, (1, 1)), (2, 2, (0, 1)), (2, 1, (1, 1))])
def test_conv2d_is_a_loop(stride, num_groups, pad):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 6, 4)), rng.normal(size=(3, 3, 4 // num_groups, 6))
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    side = (padded.shape[1] - 3) // stride + 1
    want, width = np.zeros((2, side, side, 6)), 6 // num_groups
    for i in range(side):
        for j in range(side):
            window = padded[:, i * stride:i * stride + 3, j * stride:j * stride + 3]
            for group, part in enumerate(np.split(window, num_groups, axis=3)):
                own = slice(group * width, (group + 1) * width)
                want[:, i, j, own] = np.einsum("nhwc,hwco->no", part, kernel[..., own])
    padding = (pad, pad) if pad == (1, 1) and stride == 2 else "SAME"
    got = jax.jit(lambda x, k: conv2d(x, k, stride, num_groups, padding))(x.astype(np.float32), kernel)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.quick
def test_average_pool_takes_what_a_window_at_the_border_has():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    got = jax.jit(lambda x: average_pool(x, 2))(x)
    assert got.shape == (2, 3, 2, 3)
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(got[:, i, j], x[:, 2 * i:2 * i + 2, 2 * j:2 * j + 2].mean((1, 2)), rtol=1e-5,
                                       atol=1e-6)
    assert average_pool(x, 1) is x
