"""Generation token by token."""

import functools

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.decoding.prompt import read_prompts
from mmjax.decoding.sampling import GREEDY, SamplingConfig, sample
from mmjax.kernels.target import platform
from mmjax.layers import unstack
from mmjax.models.interface import Model, Params

MAX_UNSTACKED = 48      # layers; the program grows with them


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "stop_ids", "sampling"))
def generate(model: Model, params: Params, batch: Batch, key: jax.Array, *, max_new_tokens: int,
             stop_ids: tuple[int, ...] = (), sampling: SamplingConfig = GREEDY
             ) -> tuple[jax.Array, jax.Array]:
    """Continues every row until its first stop token, or for `max_new_tokens`.

    Args:
        model, params: the system.
        batch: B prompts, one right-padded document per row.
        key: random key.
        max_new_tokens: L, at least 1. The loop ends early when all rows have stopped.
        stop_ids: tokens that end a row.
        sampling: how tokens are chosen; greedy by default.

    Returns:
        int32[B, L] tokens, the stop token left out and 0 from there on, and int32[B] how many there are.

    Raises:
        ValueError: if `max_new_tokens` is below 1, or T + L tokens are more than the model can hold.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    stops = jnp.array(stop_ids, jnp.int32)
    b = batch.tokens.shape[0]

    def put(i, logits, tokens, lengths, running):
        token = sample(jax.random.fold_in(key, i), logits, sampling)
        running &= ~jnp.isin(token, stops)
        token = jnp.where(running, token, 0)
        return token, tokens.at[:, i].set(token), lengths + running, running

    def proceed(state):
        i, _, _, _, running, _ = state
        return (i < max_new_tokens) & running.any()

    def step(state):
        i, token, tokens, lengths, running, cache = state
        logits, cache = model.decode(params, token[:, None], cache)
        return i + 1, *put(i, logits[:, 0], tokens, lengths, running), cache

    logits, cache = read_prompts(model, params, batch, max_new_tokens)
    params = _taken_apart(params)
    first = put(0, logits, jnp.zeros((b, max_new_tokens), jnp.int32), jnp.zeros(b, jnp.int32), jnp.ones(b, bool))
    _, _, tokens, lengths, _, _ = jax.lax.while_loop(proceed, step, (jnp.int32(1), *first, cache))
    return tokens, lengths


def _taken_apart(params: Params) -> Params:
    """On a CPU, the parameters with the language model's blocks as `unstack` gives them."""
    blocks = params.get("lm", {}).get("blocks")
    if platform() != "cpu" or blocks is None or jax.tree.leaves(blocks)[0].shape[0] > MAX_UNSTACKED:
        return params
    return {**params, "lm": {**params["lm"], "blocks": unstack(blocks)}}
