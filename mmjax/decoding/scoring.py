"""Constrained scoring: how likely the model finds each of several given continuations."""

import functools

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.decoding.prompt import read_prompts
from mmjax.models.interface import Model, Params


@functools.partial(jax.jit, static_argnames=("model", "together"))
def score_candidates(model: Model, params: Params, batch: Batch, candidates: jax.Array, lengths: jax.Array,
                     together: int = 1) -> jax.Array:
    """Log-likelihood of each candidate as the continuation of each prompt, its tokens added up.

    The prompts are read once. Then the candidates are read one after another, each by all rows, from that cache: it is
    never copied for all candidates, which is also faster on a CPU (8 instead of 14 ms for ten labels of seven tokens).

    Args:
        model, params: the system.
        batch: B prompts, one right-padded document per row.
        candidates: int32[C, L], the same for every row, or int32[B, C, L]; right-padded with any ids.
        lengths: int32[C] or int32[B, C] how many tokens each has, at least 1.
        together: candidates read at a time; large models on accelerators want more, at the price of as many caches.

    Returns:
        float32[B, C].

    Raises:
        ValueError: if T + L tokens are more than the model can hold.
    """
    b, (c, length) = batch.tokens.shape[0], candidates.shape[-2:]
    tokens = jnp.broadcast_to(candidates, (b, c, length)).swapaxes(0, 1)
    next_logits, cache = read_prompts(model, params, batch, length)

    def score(own: jax.Array) -> jax.Array:
        """float32[B, L] log-probability of every token of a candidate int32[B, L]."""
        logits = next_logits[:, None]
        if length > 1:
            logits = jnp.concatenate([logits, model.decode(params, own[:, :-1], cache)[0]], axis=1)
        chosen = jnp.take_along_axis(logits, own[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    logp = jax.lax.map(score, tokens, batch_size=together).swapaxes(0, 1)
    return jnp.where(jnp.arange(length) < lengths[..., None], logp, 0).sum(axis=-1)
