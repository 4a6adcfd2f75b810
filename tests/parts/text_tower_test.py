"""Text towers beyond the values that tests/parity checks: whose feature is pooled, padding, and mistakes."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.layers import BlockConfig, init_params, unbox
from mmjax.parts.text_tower import TextTower, TextTowerConfig, pool_text

BERT = TextTowerConfig(11, 6, 2, BlockConfig(8, 2, 12, norm_place="post", norm_eps=1e-12), causal=False, pool="mean",
                       num_token_types=2, embed_norm=True, final_norm=False)
TOKENS = np.array([[4, 9, 2, 9, 0, 0], [3, 5, 10, 1, 7, 2]], np.int32)


@pytest.mark.quick
def test_each_pool_takes_its_own_token():
    features = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    real = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], np.int32)
    for pool, places in (("largest_id", (1, 2)), ("last", (5, 5)), ("first", (0, 0)), ("eos", (2, 5))):
        got = pool_text(features, TOKENS, real, pool, eos_id=2)
        np.testing.assert_array_equal(got, features[[0, 1], places], err_msg=pool)
    got = pool_text(features, TOKENS, real, "mean")
    np.testing.assert_allclose(got, [features[0, :4].mean(0), features[1].mean(0)], rtol=1e-6)


def test_padding_changes_nothing_and_mistakes_are_named():
    tower, real = TextTower(BERT, parent=None), np.array([[1, 1, 1, 1, 0, 0], [1] * 6], np.int32)
    params = jax.jit(lambda key: unbox(init_params(tower, key, TOKENS)))(jax.random.key(0))
    run = jax.jit(lambda tokens, real: tower.apply({"params": params}, tokens, real))
    other = np.where(real > 0, TOKENS, 8).astype(np.int32)
    np.testing.assert_array_equal(run(TOKENS, real), run(other, real))
    assert np.abs(run(TOKENS, real) - run(other, np.ones_like(real)))[0].max() > 1e-2
    with pytest.raises(ValueError, match="texts of 12 tokens exceed max_positions=6"):
        tower.apply({"params": params}, np.tile(TOKENS, 2))
    plain = TextTower(dataclasses.replace(BERT, num_token_types=0), parent=None)
    with pytest.raises(ValueError, match="no token types"):
        plain.apply({"params": params}, TOKENS, None, TOKENS)


@pytest.mark.quick
@pytest.mark.parametrize("fields, words", [
    (dict(pool="max"), "unknown pool 'max'; choose from largest_id, eos"),
    (dict(pool="eos"), "pool='eos' with eos_id=None"),
    (dict(eos_id=3), "pool='mean' with eos_id=3"),
])
def test_pools_are_checked(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(BERT, **fields)
