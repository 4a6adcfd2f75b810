"""Token cross-entropy against a NumPy loop, at its edges, and its gradient by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import next_token_loss, token_cross_entropy, token_log_probs

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(2, 4, 7)).astype(np.float32)
TARGETS = RNG.integers(0, 7, (2, 4), np.int32)
WEIGHTS = np.array([[1, 0, 0.2, 1], [0, 0, 0.5, 2]], np.float32)


def by_hand(logits, targets, weights):
    """The weighted mean of -log softmax, one token after the other in float64."""
    total = loss = hits = 0.0
    rows = logits.reshape(-1, 7).astype(np.float64)
    for row, target, weight in zip(rows, targets.ravel(), weights.ravel(), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        total, loss, hits = total + weight, loss - weight * np.log(p[target]), hits + weight * (row.argmax() == target)
    return loss / total, hits / total, total


def test_loss_and_metrics_match_a_loop():
    targets = TARGETS.copy()
    targets[0, 0] = LOGITS[0, 0].argmax()           # one hit at least
    loss, metrics = token_cross_entropy(LOGITS, targets, WEIGHTS)
    want_loss, want_accuracy, want_total = by_hand(LOGITS, targets, WEIGHTS)
    assert loss == pytest.approx(want_loss, rel=1e-6) and metrics["loss"] == loss
    assert metrics["accuracy"] == pytest.approx(want_accuracy, rel=1e-6) and 0 < want_accuracy < 1
    assert metrics["tokens"] == pytest.approx(want_total, rel=1e-6)
    assert set(metrics) == {"loss", "accuracy", "tokens"} and loss.dtype == jnp.float32


@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_loss_of_hidden_states_is_that_of_their_logits(vocab_axis):
    hidden, matrix = RNG.normal(size=(2, 4, 5)).astype(np.float32), RNG.normal(size=(7, 5)).astype(np.float32)
    loss, metrics = next_token_loss(hidden, matrix if vocab_axis == 0 else matrix.T, TARGETS, WEIGHTS, vocab_axis)
    want_loss, want = token_cross_entropy(hidden @ matrix.T, TARGETS, WEIGHTS)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


def test_gradient_matches_finite_differences():
    gradient = np.asarray(jax.grad(lambda logits: token_cross_entropy(logits, TARGETS, WEIGHTS)[0])(LOGITS))
    for index in np.ndindex(*LOGITS.shape):
        up, down = np.float64(LOGITS), np.float64(LOGITS)
        up[index], down[index] = up[index] + 1e-5, down[index] - 1e-5
        slope = (by_hand(up, TARGETS, WEIGHTS)[0] - by_hand(down, TARGETS, WEIGHTS)[0]) / 2e-5
        assert gradient[index] == pytest.approx(slope, abs=2e-7)
    assert not np.any(gradient[WEIGHTS == 0])


def test_zero_weights_give_zero_loss_and_zero_gradient():
    (loss, metrics), gradient = jax.value_and_grad(token_cross_entropy, has_aux=True)(LOGITS, TARGETS, 0 * WEIGHTS)
    assert loss == 0 and metrics["accuracy"] == 0 and metrics["tokens"] == 0
    assert not np.any(gradient)
    loss, metrics = next_token_loss(LOGITS, np.eye(7, dtype=np.float32), TARGETS, 0 * WEIGHTS)
    assert loss == 0 and metrics["accuracy"] == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_stay_finite(dtype):
    logits = jnp.array([[[3e38, -3e38, 0.0], [-3e38, -3e38, -3e38], [1e4, 1e4, -1e4]]], dtype)
    targets = jnp.array([[0, 1, 2]])
    (loss, _), gradient = jax.value_and_grad(token_cross_entropy, has_aux=True)(logits, targets, jnp.ones((1, 3)))
    log_probs = token_log_probs(logits, targets)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    np.testing.assert_allclose(log_probs[0, :2], [0, -np.log(3)], rtol=1e-6)
    assert log_probs[0, 2] < -1.9e4 and log_probs.dtype == jnp.float32
