"""Constrained scoring: how likely the model finds each of several given continuations."""

import functools

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.decoding.prompt import read_prompts
from mmjax.models.interface import Model, Params


@functools.partial(jax.jit, static_argnames="model")
def score_candidates(model: Model, params: Params, batch: Batch, candidates: jax.Array, lengths: jax.Array
                     ) -> jax.Array:
    """Log-likelihood of each candidate as the continuation of each prompt, its tokens added up.

    The prompts are read once; then all candidates of all rows are read together from copies of the cache.

    Args:
        model, params: the system.
        batch: B prompts, one right-padded document per row.
        candidates: int32[C, L], the same for every row, or int32[B, C, L]; right-padded with any ids.
        lengths: int32[C] or int32[B, C] how many tokens each has, at least 1.

    Returns:
        float32[B, C].

    Raises:
        ValueError: if T + L tokens are more than the model can hold.
    """
    b, (c, length) = batch.tokens.shape[0], candidates.shape[-2:]
    tokens = jnp.broadcast_to(candidates, (b, c, length))
    logits, cache = read_prompts(model, params, batch, length)
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, :, 0], axis=1)[:, :, None]
    if length > 1:
        copies = cache.take(jnp.repeat(jnp.arange(b), c))
        logits, _ = model.decode(params, tokens[:, :, :-1].reshape(b * c, length - 1), copies)
        logp = jnp.concatenate([logp, _token_logp(logits.reshape(b, c, length - 1, -1), tokens[:, :, 1:])], axis=-1)
    return jnp.where(jnp.arange(length) < lengths[..., None], logp, 0).sum(axis=-1)


def _token_logp(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """float32[..., V] logits and int32[...] tokens -> float32[...] log-probabilities."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
