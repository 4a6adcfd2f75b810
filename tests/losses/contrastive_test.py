import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import contrastive_loss

SCALE, BIAS = np.log(10.0), -10.0


def embeddings(n=7, c=4):
    x = np.random.default_rng(0).normal(size=(2, n, c))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.quick
def test_softmax_form_is_the_mean_of_both_directions():
    images, texts = embeddings()
    loss, metrics = contrastive_loss(images, texts, jnp.ones(7), SCALE)
    logits = 10 * images.astype(np.float64) @ texts.T
    rows, columns = (np.mean(np.log(np.exp(z).sum(1)) - np.diag(z)) for z in (logits, logits.T))
    np.testing.assert_allclose(loss, (rows + columns) / 2, rtol=1e-6)
    right = np.mean([logits.argmax(0) == np.arange(7), logits.argmax(1) == np.arange(7)])
    np.testing.assert_allclose([metrics["accuracy"], metrics["tokens"], metrics["scale"]], [right, 7, 10], rtol=1e-6)


@pytest.mark.quick
def test_sigmoid_form_counts_every_pair_and_divides_by_rows():
    images, texts = embeddings()
    loss, _ = contrastive_loss(images, texts, jnp.ones(7), SCALE, BIAS)
    logits = 10 * images.astype(np.float64) @ texts.T + BIAS
    signs = 2 * np.eye(7) - 1
    np.testing.assert_allclose(loss, np.log1p(np.exp(-signs * logits)).sum() / 7, rtol=1e-6)


@pytest.mark.quick
def test_absent_pairs_change_nothing():
    images, texts = embeddings()
    want, _ = contrastive_loss(images[:5], texts[:5], jnp.ones(5), SCALE)
    got, metrics = contrastive_loss(images, texts, jnp.asarray([1.0] * 5 + [0] * 2), SCALE)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert metrics["tokens"] == 5
    assert contrastive_loss(images, texts, jnp.zeros(7), SCALE)[0] == 0
