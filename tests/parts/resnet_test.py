"""CLIP's ResNets: tokens, stored statistics, mistakes; `tests/parity/vision_test.py` has them against open_clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import init_params, unbox
from mmjax.parts.resnet import ConvNorm, ResNet, ResNetConfig


@pytest.mark.quick
def test_tokens_are_the_positions_of_the_last_map():
    config = ResNetConfig(64, (2, 1, 1, 1), width=2)
    shape = jax.eval_shape(lambda: ResNet(config).init_with_output(jax.random.key(0), jnp.zeros((3, 64, 64, 3)))[0])
    assert shape.shape == (3, config.num_tokens, config.num_features) == (3, 4, 64)


@pytest.mark.quick
def test_batch_norms_use_their_statistics_and_give_them_no_gradient():
    x, layer = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32), ConvNorm(5, 1, 1, jnp.float32)
    params = unbox(init_params(layer, jax.random.key(0), x))
    params |= {"mean": jnp.arange(5.0), "var": jnp.arange(1.0, 6.0)}
    want = (x @ params["kernel"][0, 0] - np.arange(5)) / np.sqrt(np.arange(1, 6) + 1e-5)
    run = lambda params: layer.apply({"params": params}, x)  # noqa: E731
    np.testing.assert_allclose(run(params), want, rtol=1e-5, atol=1e-5)
    slopes = jax.grad(lambda p: jnp.square(run(p)).sum())(params)
    assert not slopes["mean"].any() and not slopes["var"].any() and slopes["scale"].any()


@pytest.mark.quick
def test_mistakes_are_named():
    with pytest.raises(ValueError, match="image_size=100 must be a multiple of the stride, 32"):
        ResNetConfig(100)
    with pytest.raises(ValueError, match=r"images \[1, 32, 32, 3\] must be \[B, 64, 64, 3\]"):
        jax.eval_shape(lambda: ResNet(ResNetConfig(64)).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
