"""NFNets: tokens, mistakes; `tests/parity/vision_test.py` has them against timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.parts.nfnet import GAIN, NFNet, NFNetConfig


@pytest.mark.quick
def test_flamingo_reads_a_hundred_positions():
    assert NFNetConfig().num_tokens == 100
    config = NFNetConfig(33, (1, 2), (16, 16), stem_width=8, group_size=8, num_features=24)
    shape = jax.eval_shape(lambda: NFNet(config).init_with_output(jax.random.key(0), jnp.zeros((2, 33, 33, 3)))[0])
    assert shape.shape == (2, config.num_tokens, 24) == (2, 25, 24)


@pytest.mark.quick
def test_activations_keep_the_variance_of_a_standard_normal():
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    assert float(NFNetConfig().activate(x).std()) == pytest.approx(1, abs=0.01)
    assert pytest.approx(1.7015, abs=1e-4) == GAIN


@pytest.mark.quick
@pytest.mark.parametrize("fields, message", [
    (dict(activation="relu"), "unknown activation 'relu'; choose 'gelu' or 'gelu_tanh'"),
    (dict(depths=(1, 2)), "must have one number per stage"),
    (dict(group_size=96), "must be multiples of group_size=96"),
    (dict(remat="some"), "unknown remat policy 'some'"),
])
def test_mistakes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        NFNetConfig(**fields)
