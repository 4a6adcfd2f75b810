"""Positions as a bias, against the sentences of the papers and loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers.relative import Distances, alibi, alibi_slopes, buckets, distances, sinusoids


@pytest.mark.quick
def test_alibi_slopes_are_the_papers():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(3), [2.0**-4, 2.0**-8, 2.0**-2])       # of 4: the second and fourth first
    bias = alibi(distances(np.array([[2, 5]]), 4), 8)
    np.testing.assert_allclose(bias[0, 1], [[-0.5, -0.25, 0, 0.25], [-1.25, -1, -0.75, -0.5]])


@pytest.mark.quick
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_match_a_loop(bidirectional):
    """Away from the edges of a bucket, where a logarithm rounds."""
    def by_hand(d):
        n = 16 if bidirectional else 32
        side, d = (n if bidirectional and d < 0 else 0), abs(d) if bidirectional else max(d, 0)
        if d < n // 2:
            return side + d
        return side + min(n // 2 + int(math.log(2 * d / n) / math.log(256 / n) * (n // 2) + 1e-9), n - 1)

    d = np.arange(-200, 201)
    np.testing.assert_array_equal(buckets(d, 32, 128, bidirectional), [by_hand(int(x)) for x in d])


@pytest.mark.quick
def test_distances_read_the_feature_of_their_own():
    rng = np.random.default_rng(0)
    q, r = rng.normal(size=(2, 3, 2, 4)).astype(np.float32), rng.normal(size=(5, 2, 4)).astype(np.float32)
    index = rng.integers(0, 5, (2, 3, 6))
    got = Distances(jnp.zeros((5, 1)), index).scores(q, r)
    for b, t, s in np.ndindex(index.shape):
        np.testing.assert_allclose(got[b, :, t, s], (q[b, t] * r[index[b, t, s]]).sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_sinusoids_are_sines_then_cosines():
    got = sinusoids(7, 6)
    for r, i in np.ndindex(7, 3):
        angle = r / 10_000 ** (2 * i / 6)
        np.testing.assert_allclose(got[r, [i, 3 + i]], [math.sin(angle), math.cos(angle)], atol=1e-6)
