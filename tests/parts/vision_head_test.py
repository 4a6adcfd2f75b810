"""Vision heads: what is pooled, and mistakes; `tests/parity/vision_test.py` has them against the references."""

import jax
import numpy as np
import pytest

from mmjax.layers import init_params, unbox
from mmjax.parts.vision_head import VisionHead, VisionHeadConfig

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


@pytest.mark.quick
def test_first_token_is_projected():
    head = VisionHead(VisionHeadConfig(8, 3))
    params = unbox(init_params(head, jax.random.key(0), TOKENS))
    np.testing.assert_allclose(head.apply({"params": params}, TOKENS), TOKENS[:, 0] @ params["proj"]["kernel"],
                               rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_the_mean_leaves_out_class_tokens():
    got = VisionHead(VisionHeadConfig(8, pool="mean", num_class_tokens=2)).apply({}, TOKENS)
    np.testing.assert_allclose(got, TOKENS[:, 2:].mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("fields, message", [
    (dict(pool="max"), "unknown pool 'max'; choose from class, mean, latent, mean_query"),
    (dict(pool="latent", mlp_dim=8), "pool='latent' needs num_heads=0 that divide input_dim=8"),
    (dict(pool="latent", num_heads=2), "pool='latent' needs mlp_dim"),
    (dict(pool="mean_query", num_heads=2), "pool='mean_query' needs num_tokens"),
])
def test_mistakes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        VisionHeadConfig(8, **fields)
