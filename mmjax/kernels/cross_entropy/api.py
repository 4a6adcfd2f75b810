"""The one entry to cross-entropy over a vocabulary: checks its arguments and chooses an implementation."""

import jax
import jax.numpy as jnp

from mmjax.kernels.cross_entropy.reference import reference
from mmjax.kernels.cross_entropy.sharded import chunked

# The first is the default, at every size: a call that fits into one chunk is the plain computation.
IMPLEMENTATIONS = {"chunked": chunked, "reference": reference}


def cross_entropy(
    hidden: jax.Array,
    matrix: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    vocab_axis: int = 0,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums of -log softmax(hidden · matrix)[target] and of hits, without all logits at once.

    Args:
        hidden: float[B, T, D] what the output matrix is applied to; its dtype is that of the products' factors.
        matrix: float[V, D] or float[D, V].
        targets: int32[B, T] words below V.
        weights: float32[B, T].
        vocab_axis: 0 for a matrix [V, D], 1 for [D, V].
        implementation: a name of `IMPLEMENTATIONS`, or None for the first.

    Returns:
        The sum over tokens of weight times loss in nats, and of weight times whether the target has the first largest
        logit: float32 scalars. The gradient of the second is 0.

    Raises:
        ValueError: if shapes or dtypes do not fit, or for an unknown implementation.
    """
    _check(hidden, matrix, targets, weights, vocab_axis)
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation={implementation!r} must be None or one of {', '.join(IMPLEMENTATIONS)}")
    run = IMPLEMENTATIONS[implementation or next(iter(IMPLEMENTATIONS))]
    return run(hidden, matrix, targets, weights, vocab_axis=vocab_axis)


def _check(hidden, matrix, targets, weights, vocab_axis: int) -> None:
    if vocab_axis not in (0, 1):
        raise ValueError(f"vocab_axis={vocab_axis} must be 0 for a matrix [V, D] or 1 for [D, V]")
    if hidden.ndim != 3 or matrix.ndim != 2 or matrix.shape[1 - vocab_axis] != hidden.shape[2]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and matrix {list(matrix.shape)} must be [B, T, D] and "
            f"{'[V, D]' if vocab_axis == 0 else '[D, V]'} (vocab_axis={vocab_axis}) with the same D")
    if targets.shape != hidden.shape[:2] or weights.shape != hidden.shape[:2]:
        raise ValueError(
            f"targets {list(targets.shape)} and weights {list(weights.shape)} must be [B, T] = "
            f"{list(hidden.shape[:2])}, one for each token of hidden")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets {targets.dtype} must be integers")
