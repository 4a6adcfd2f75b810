"""Where every kind of decoding begins: the prompts are read once."""

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.models.interface import Cache, Model, Params


def read_prompts(model: Model, params: Params, batch: Batch, num_new: int) -> tuple[jax.Array, Cache]:
    """Reads one right-padded prompt per row.

    Args:
        model, params: the system.
        batch: B rows of at most T tokens, each a single unfinished document of at least one token.
        num_new: room that the cache keeps after T tokens.

    Returns:
        float32[B, V] logits of the token that follows each prompt, and the cache.
    """
    logits, cache = model.prefill(params, batch, batch.tokens.shape[1] + num_new)
    last = jnp.maximum(cache.lengths - 1, 0)[:, None, None]
    return jnp.take_along_axis(logits, last, axis=1)[:, 0], cache
