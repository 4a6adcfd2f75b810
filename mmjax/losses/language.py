"""Next-token prediction."""

import jax
import jax.numpy as jnp


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


def token_cross_entropy(logits: jax.Array, targets: jax.Array,
                        weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean negative log-likelihood of the target tokens.

    Args:
        logits: float[B, T, V].
        targets: int32[B, T].
        weights: float32[B, T], at least 0; a batch whose weights are all 0 has loss 0 and no gradient.

    Returns:
        The loss, a float32 scalar in nats per unit of weight, and metrics: `loss`, `accuracy` (weighted share of
        targets that have the largest logit) and `tokens` (the sum of weights).
    """
    total = weights.sum()
    mean = lambda x: (x * weights).sum() / jnp.where(total > 0, total, 1.0)  # noqa: E731
    loss = mean(-token_log_probs(logits, targets))
    accuracy = mean((logits.argmax(-1) == targets).astype(jnp.float32))
    return loss, {"loss": loss, "accuracy": accuracy, "tokens": total}
