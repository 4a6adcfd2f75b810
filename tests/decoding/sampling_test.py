import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.decoding.sampling import SamplingConfig, keep_top_k, keep_top_p, sample

PROBABILITIES = jnp.array([[0.1, 0.4, 0.15, 0.3, 0.05], [0.2, 0.2, 0.2, 0.2, 0.2]])


def kept(logits):
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(logits)]


def test_keep_top_k_keeps_the_largest_and_ties():
    assert kept(keep_top_k(jnp.log(PROBABILITIES), 2)) == [[1, 3], [0, 1, 2, 3, 4]]
    assert kept(keep_top_k(jnp.log(PROBABILITIES), 99)) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("p, want", [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]),
                                     (0.96, [0, 1, 2, 3, 4])])
def test_keep_top_p_keeps_the_fewest_that_reach_p(p, want):
    assert kept(keep_top_p(jnp.log(PROBABILITIES[:1]), p)) == [want]


def test_limits_leave_the_kept_logits_as_they_are():
    logits = jnp.log(PROBABILITIES)
    for out in (keep_top_k(logits, 3), keep_top_p(logits, 0.6)):
        finite = jnp.isfinite(out)
        np.testing.assert_array_equal(out[finite], logits[finite])


def frequencies(config, n=20_000):
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES[0]), (n, 5))
    return np.bincount(np.asarray(sample(jax.random.key(1), logits, config)), minlength=5) / n


@pytest.mark.parametrize("config, want", [
    (SamplingConfig(temperature=1.0), [0.1, 0.4, 0.15, 0.3, 0.05]),
    (SamplingConfig(temperature=0.5), np.square([0.1, 0.4, 0.15, 0.3, 0.05]) / 0.285),
    (SamplingConfig(temperature=1.0, top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
    (SamplingConfig(temperature=1.0, top_p=0.8), [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),
    # The nucleus is that of what top_k leaves, renormalised: 0.4 / 0.7 alone reaches 0.5.
    (SamplingConfig(temperature=1.0, top_k=2, top_p=0.5), [0, 1, 0, 0, 0]),
])
def test_sample_follows_the_distribution(config, want):
    np.testing.assert_allclose(frequencies(config), want, atol=4 * 0.5 / np.sqrt(20_000))


@pytest.mark.quick
def test_temperature_zero_is_greedy_whatever_the_key():
    logits = jnp.log(PROBABILITIES)
    for seed in range(3):
        out = sample(jax.random.key(seed), logits, SamplingConfig(0.0, top_k=3, top_p=0.5))
        assert out.dtype == jnp.int32 and out.tolist() == [1, 0]


@pytest.mark.parametrize("bad, match", [(dict(temperature=-1.0), "temperature=-1.0"), (dict(top_k=0), "top_k=0"),
                                        (dict(top_p=0.0), "top_p=0.0"), (dict(top_p=1.5), "top_p=1.5")])
def test_config_refuses(bad, match):
    with pytest.raises(ValueError, match=match):
        SamplingConfig(**bad)
