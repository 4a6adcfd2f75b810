"""Beam search."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.decoding.prompt import read_prompts
from mmjax.models.interface import Model, Params


class Beams(NamedTuple):
    """Continuations of B rows, K each, best first.

    Attributes:
        tokens: int32[B, K, L], the stop token left out and 0 from there on.
        lengths: int32[B, K] how many tokens there are.
        scores: float32[B, K] log-likelihood over length**length_penalty; -inf where there are fewer than K.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array


class _Live(NamedTuple):
    """Unfinished hypotheses [B, K], best first, with the sum of their log-probabilities."""

    tokens: jax.Array
    scores: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "num_beams", "stop_ids", "length_penalty"))
def beam_search(model: Model, params: Params, batch: Batch, *, max_new_tokens: int, num_beams: int = 3,
                stop_ids: tuple[int, ...] = (), length_penalty: float = 1.0) -> Beams:
    """Searches the most likely continuations of every row.

    Each step keeps the K best unfinished hypotheses, and the K best of all that could finish so far. A hypothesis
    scores log p(Y) / |Y|**length_penalty, with the stop token counted in p and |Y|: 1 is the mean log-probability, 0
    the plain sum, and a negative penalty favours short answers. One that reaches `max_new_tokens` without a stop
    token takes part as it is. The search ends early once no row's best hypothesis can change any more; lower ranks
    are the best found until then.

    Args:
        model, params: the system.
        batch: B prompts, one right-padded document per row.
        max_new_tokens: L, at least 1, the stop token included.
        num_beams: K.
        stop_ids: tokens that end a hypothesis; their probabilities are added up.
        length_penalty: see above.

    Returns:
        The `Beams`.

    Raises:
        ValueError: if `max_new_tokens` or `num_beams` is below 1, or T + L tokens are more than the model can hold.

    Source: the length penalty is that of fairseq and transformers, with which KOSMOS-1 and BLIP-2 (penalty -1 for
    answers, arXiv:2301.12597) were decoded; not the ((5 + |Y|) / 6)**alpha of GNMT (arXiv:1609.08144, equation 14).
    """
    if max_new_tokens < 1 or num_beams < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} and num_beams={num_beams} must be at least 1")
    b, k = batch.tokens.shape[0], num_beams
    first_row = jnp.arange(b)[:, None] * k

    def step(i, live: _Live, done: Beams, logits: jax.Array) -> tuple[jax.Array, _Live, Beams]:
        """Adds token i: returns the parent of each new live hypothesis, int32[B, K], and both lists."""
        total = live.scores[..., None] + jax.nn.log_softmax(logits.reshape(b, k, -1))
        if stop_ids:
            ended = jax.nn.logsumexp(total[..., jnp.array(stop_ids)], axis=-1) / (i + 1.0) ** length_penalty
            done = _merge(done, live.tokens, jnp.full((b, k), i), ended)
            total = total.at[..., jnp.array(stop_ids)].set(-jnp.inf)
        scores, flat = jax.lax.top_k(total.reshape(b, -1), k)
        parent, token = jnp.divmod(flat, total.shape[-1])
        tokens = jnp.take_along_axis(live.tokens, parent[..., None], axis=1).at[:, :, i].set(token)
        return parent, _Live(tokens, scores), done

    def proceed(state):
        i, _, live, done, _ = state
        bound = live.scores[:, 0] / _best_length(i, max_new_tokens, length_penalty) ** length_penalty
        return (i < max_new_tokens) & (bound > done.scores[:, 0]).any()

    def advance(state):
        i, parent, live, done, cache = state
        newest = live.tokens[:, :, i - 1].reshape(b * k, 1)
        logits, cache = model.decode(params, newest, cache.take((first_row + parent).reshape(-1)))
        return i + 1, *step(i, live, done, logits[:, 0]), cache

    logits, cache = read_prompts(model, params, batch, max_new_tokens)
    logits, cache = jnp.repeat(logits, k, axis=0), cache.take(jnp.repeat(jnp.arange(b), k))
    state = step(0, *_start(b, k, max_new_tokens), logits)
    i, _, live, done, _ = jax.lax.while_loop(proceed, advance, (jnp.int32(1), *state, cache))
    whole = jnp.where(i == max_new_tokens, live.scores / float(max_new_tokens) ** length_penalty, -jnp.inf)
    return _merge(done, live.tokens, jnp.full((b, k), max_new_tokens), whole)


def _start(b: int, k: int, max_new_tokens: int) -> tuple[_Live, Beams]:
    """One live hypothesis per row, the empty one, and none that is finished."""
    tokens = jnp.zeros((b, k, max_new_tokens), jnp.int32)
    live = _Live(tokens, jnp.full((b, k), -jnp.inf).at[:, 0].set(0))
    return live, Beams(tokens, jnp.zeros((b, k), jnp.int32), jnp.full((b, k), -jnp.inf))


def _best_length(i: jax.Array, max_new_tokens: int, length_penalty: float) -> jax.Array:
    """The final length at which a hypothesis of i tokens could score highest if all that follows were certain."""
    return jnp.float32(max_new_tokens) if length_penalty > 0 else i.astype(jnp.float32)


def _merge(done: Beams, tokens: jax.Array, lengths: jax.Array, scores: jax.Array) -> Beams:
    """The K best of the finished hypotheses and of K more."""
    k = scores.shape[1]
    every = Beams(*(jnp.concatenate(pair, axis=1) for pair in zip(done, (tokens, lengths, scores), strict=True)))
    best, index = jax.lax.top_k(every.scores, k)
    return Beams(jnp.take_along_axis(every.tokens, index[..., None], axis=1),
                 jnp.take_along_axis(every.lengths, index, axis=1), best)
