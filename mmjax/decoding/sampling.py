"""The next token from its logits: greedy, by temperature, from the k most likely, from the nucleus."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a token is chosen. The limits apply in the order of the fields.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token, whatever the other fields say.
        top_k: how many of the most likely tokens may be drawn; None for all.
        top_p: draw from the fewest most likely tokens that have at least this probability together.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must not be negative; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None for no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")


GREEDY = SamplingConfig()


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """float[B, V] logits with -inf for all but the k largest of a row; those equal to the k-th stay too."""
    kth = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits >= kth, logits, -jnp.inf)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Nucleus: keeps the fewest most likely tokens that have probability p or more together.

    Args:
        logits: float[B, V].
        p: above 0, at most 1; the most likely token always stays.

    Returns:
        float[B, V] logits, -inf outside the nucleus; tokens as likely as the last one in it stay too.

    Source: arXiv:1904.09751, section 3.1.
    """
    largest_first = jnp.sort(logits, axis=-1, descending=True)
    mass = jnp.cumsum(jax.nn.softmax(largest_first, axis=-1), axis=-1)
    before = jnp.pad(mass[:, :-1], ((0, 0), (1, 0)))
    last = jnp.sum(before < p, axis=-1, keepdims=True) - 1
    return jnp.where(logits >= jnp.take_along_axis(largest_first, last, axis=-1), logits, -jnp.inf)


def sample(key: jax.Array, logits: jax.Array, config: SamplingConfig) -> jax.Array:
    """Chooses a token per row.

    Args:
        key: random key; not used when greedy.
        logits: float32[B, V].
        config: how.

    Returns:
        int32[B]; the smallest id where greedy meets a tie.
    """
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / config.temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    return jax.random.categorical(key, logits).astype(jnp.int32)
