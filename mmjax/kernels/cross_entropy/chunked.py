"""Cross-entropy in chunks of tokens: the logits of all tokens never exist at once.

The loss is a sum over tokens, so a chunk's gradient is known as soon as its logits are, up to the one factor that the
backward pass brings. It is therefore taken in the forward pass, which keeps the gradients of `hidden` and `matrix`
instead of logits: as many matrix products as the plain computation, none twice.

The vocabulary may be split over devices: the maximum, the sum of exponentials, the target's logit and the gradient of
`hidden` are then joined over them, a few numbers a token and one row of D.

Source: the idea of Cut Cross-Entropy (arXiv:2411.09009) section 4 and Liger-Kernel (arXiv:2410.10989) section 3.2.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# The logits of a chunk take 256 MB in float32, or more where that is fewer tokens than this: each chunk reads and
# writes the gradient of the whole matrix, which from about 800 tokens on takes less time than the chunk's products.
CHUNK_LOGITS, LEAST_TOKENS = 2**26, 1024


class Split(NamedTuple):
    """Where this device's part of the matrix lies.

    Attributes:
        vocab_axis: 0 for a matrix [V, D], 1 for [D, V].
        mesh_axes: the axes of the mesh over which V is split; () for a whole matrix.
    """

    vocab_axis: int
    mesh_axes: tuple[str, ...] = ()

    def sum(self, x):
        return jax.lax.psum(x, self.mesh_axes) if self.mesh_axes else x

    def largest(self, x):
        return jax.lax.pmax(x, self.mesh_axes) if self.mesh_axes else x

    def smallest(self, x):
        return jax.lax.pmin(x, self.mesh_axes) if self.mesh_axes else x


def sums(hidden, matrix, targets, weights, first_word, split: Split) -> tuple[jax.Array, jax.Array]:
    """Weighted sums of losses and of hits over the tokens of this device.

    Args:
        hidden: float[N, D].
        matrix: float[V, D] or float[D, V], the words `first_word`, `first_word + 1`, ... of the vocabulary.
        targets: int32[N] words of the whole vocabulary.
        weights: float32[N].
        first_word: int32[].
        split: see `Split`.
    """
    matrix = matrix.astype(hidden.dtype)

    def step(total, chunk):
        losses, hits, _ = _chunk(*chunk[:2], matrix, first_word, split)
        return (total[0] + (losses * chunk[2]).sum(), total[1] + (hits * chunk[2]).sum()), None

    chunks = _chunks(hidden, targets, weights, matrix.shape[split.vocab_axis])
    return jax.lax.scan(step, (jnp.float32(0), jnp.float32(0)), chunks)[0]


def sums_and_grads(hidden, matrix, targets, weights, first_word, split: Split) -> tuple[tuple, tuple]:
    """As `sums`, and the gradients of the sum of losses: of hidden float[N, D], the matrix (float32) and weights."""
    words = matrix.astype(hidden.dtype)

    def step(carry, chunk):
        (loss, correct), d_matrix = carry
        x, goals, w = chunk
        losses, hits, d_logits = _chunk(x, goals, words, first_word, split)
        d_logits = (d_logits * w[:, None]).astype(x.dtype)
        d_x = split.sum(_product("nv,vd->nd", d_logits, words, split)).astype(x.dtype)
        d_matrix += _product("nd,nv->vd", x, d_logits, split)
        return ((loss + (losses * w).sum(), correct + (hits * w).sum()), d_matrix), (d_x, losses)

    chunks = _chunks(hidden, targets, weights, matrix.shape[split.vocab_axis])
    nothing = (jnp.float32(0), jnp.float32(0)), jnp.zeros(matrix.shape, jnp.float32)
    (totals, d_matrix), (d_hidden, losses) = jax.lax.scan(step, nothing, chunks)
    d_hidden = d_hidden.reshape(-1, hidden.shape[1])[:len(hidden)]
    return totals, (d_hidden, d_matrix, losses.reshape(-1)[:len(hidden)])


def _chunk(x, targets, words, first_word, split: Split) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses and hits float32[C] of the tokens of a chunk, and the gradient float32[C, V] of the losses' sum."""
    logits = _product("nd,vd->nv", x, words, split)
    word = first_word + jnp.arange(logits.shape[1], dtype=jnp.int32)
    is_target = word == targets[:, None]
    top = split.largest(logits.max(1))
    # The first of several largest logits, as argmax has it.
    best = split.smallest(jnp.where(logits == top[:, None], word, jnp.iinfo(jnp.int32).max).min(1))
    powers = jnp.exp(logits - top[:, None])
    total = split.sum(powers.sum(1))
    chosen = split.sum(jnp.where(is_target, logits, 0).sum(1))
    # Subtracting the largest logit first keeps the digits that a common offset of all logits would take.
    losses = jnp.log(total) - (chosen - top)
    return losses, (best == targets).astype(jnp.float32), powers / total[:, None] - is_target


def _chunks(hidden, targets, weights, num_words: int) -> tuple[jax.Array, ...]:
    """The three arrays cut into equal chunks [?, C, ...]; what fills up the last one has weight 0."""
    n = max(len(hidden), 1)
    count = -(-n // max(LEAST_TOKENS, CHUNK_LOGITS // num_words))
    size = -(-n // count)
    missing = count * size - len(hidden)

    def cut(x):
        x = jnp.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)))
        return x.reshape(count, size, *x.shape[1:])

    return cut(hidden), cut(targets), cut(weights)


def _product(formula: str, a, b, split: Split) -> jax.Array:
    """float32 product with the matrix, or its gradient, written "vd" in the formula, in the layout it has."""
    formula = formula if split.vocab_axis == 0 else formula.replace("vd", "dv")
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def differentiable(hidden, matrix, targets, weights, run, run_with_grads):
    """(loss, hits) of `run`, with the gradients that `run_with_grads` gives beside them."""
    return run(hidden, matrix, targets, weights)


def _forward(hidden, matrix, targets, weights, run, run_with_grads):
    totals, grads = run_with_grads(hidden, matrix, targets, weights)
    return totals, (grads, jnp.zeros((0,), matrix.dtype))


def _backward(run, run_with_grads, saved, cotangents):
    (d_hidden, d_matrix, d_weights), like_matrix = saved
    factor = cotangents[0]          # the hits are counts: no gradient
    d_hidden, d_matrix = (factor * d_hidden).astype(d_hidden.dtype), (factor * d_matrix).astype(like_matrix.dtype)
    return d_hidden, d_matrix, None, factor * d_weights


differentiable.defvjp(_forward, _backward)
