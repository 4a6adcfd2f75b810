"""Next-token prediction."""

import jax
import jax.numpy as jnp

from mmjax.kernels.cross_entropy import cross_entropy

Metrics = dict[str, jax.Array]


def token_log_probs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probability of each target token.

    Args:
        logits: float[..., V]; the log-softmax is taken in float32.
        targets: int32[...] token ids below V.

    Returns:
        float32[...], at most 0.
    """
    logits = logits.astype(jnp.float32)
    top = jax.lax.stop_gradient(logits.max(-1))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # Subtracting the largest logit first keeps the digits that a common offset of all logits would take.
    return (chosen - top) - jnp.log(jnp.exp(logits - top[..., None]).sum(-1))


def next_token_loss(hidden: jax.Array, matrix: jax.Array, targets: jax.Array, weights: jax.Array,
                    vocab_axis: int = 0) -> tuple[jax.Array, Metrics]:
    """`token_cross_entropy` of the logits hidden · matrix, which for long batches never exist all at once.

    Args:
        hidden: float[B, T, D] in the dtype of the product's factors.
        matrix: float[V, D] or float[D, V].
        targets, weights: as for `token_cross_entropy`.
        vocab_axis: 0 for a matrix [V, D], 1 for [D, V].
    """
    loss, hits = cross_entropy(hidden, matrix, targets, weights, vocab_axis=vocab_axis)
    return _means(loss, hits, weights.sum())


def token_cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, Metrics]:
    """Weighted mean negative log-likelihood of the target tokens.

    Args:
        logits: float[B, T, V].
        targets: int32[B, T].
        weights: float32[B, T], at least 0; a batch whose weights are all 0 has loss 0 and no gradient.

    Returns:
        The loss, a float32 scalar in nats per unit of weight, and metrics: `loss`, `accuracy` (weighted share of
        targets that have the largest logit) and `tokens` (the sum of weights).
    """
    loss = -(token_log_probs(logits, targets) * weights).sum()
    hits = ((logits.argmax(-1) == targets) * weights).sum()
    return _means(loss, hits, weights.sum())


def _means(loss: jax.Array, hits: jax.Array, total: jax.Array) -> tuple[jax.Array, Metrics]:
    divisor = jnp.where(total > 0, total, 1.0)
    return loss / divisor, {"loss": loss / divisor, "accuracy": hits / divisor, "tokens": total}
