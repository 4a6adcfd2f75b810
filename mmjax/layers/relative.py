"""Positions as a bias of the attention logits: ALiBi, T5's buckets, and Transformer-XL's distances.

Each sees only the distance from a key to a query, so packed documents need no positions: the index in the row does.
"""

import math

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Distances:
    """What Transformer-XL's attention reads of the positions.

    Attributes:
        features: float[R, D] sinusoids of the distances 0 .. R - 1.
        index: int32[1 or B, T, S] distance from each key to each query, clipped to 0 .. R - 1.
    """

    features: jax.Array
    index: jax.Array

    def scores(self, q: jax.Array, projected: jax.Array) -> jax.Array:
        """Products of queries [B, T, N, H], projected features [R, N, H] of each key's distance: float32[B, N, T, S].

        The sum over H is taken once per query and distance, as the content term takes it per query and key.
        """
        all_distances = jnp.einsum("btnh,rnh->bntr", q, projected, preferred_element_type=jnp.float32)
        index = jnp.broadcast_to(self.index[:, None], (*all_distances.shape[:3], self.index.shape[-1]))
        return jnp.take_along_axis(all_distances, index, axis=-1)


def distances(queries: jax.Array, num_keys: int) -> jax.Array:
    """int32[1 or B, T, S]: index of the query minus index of the key; negative for later keys.

    Args:
        queries: int32[1 or B, T] index of each query among the keys.
        num_keys: S.
    """
    return queries[:, :, None] - jnp.arange(num_keys, dtype=jnp.int32)


def sinusoids(num_rows: int, dim: int) -> jax.Array:
    """float32[num_rows, dim]: sines of r / 10000^(2i/dim), then the cosines; for Transformer-XL (arXiv:1901.02860)."""
    frequency = 10_000.0 ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    angle = jnp.arange(num_rows, dtype=jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def alibi_slopes(num_heads: int, largest: float = 8.0) -> jax.Array:
    """float32[N]: 2^(-8/n), 2^(-16/n), ... for n the power of two from N on, every second one first if n > N.

    Source: ALiBi (arXiv:2108.12409) section 3, in MPT's form for numbers of heads that are no power of two.
    """
    n = 2 ** math.ceil(math.log2(num_heads))
    slopes = 2.0 ** (-largest / n * jnp.arange(1, n + 1, dtype=jnp.float32))
    return slopes if n == num_heads else jnp.concatenate([slopes[1::2], slopes[::2]])[:num_heads]


def alibi(distance: jax.Array, num_heads: int) -> jax.Array:
    """float32[1 or B, N, T, S] bias of int32[1 or B, T, S] distances: slope times distance, downwards."""
    return -alibi_slopes(num_heads)[:, None, None] * distance[:, None].astype(jnp.float32)


def buckets(distance: jax.Array, num_buckets: int, max_distance: int, bidirectional: bool) -> jax.Array:
    """int32 bucket of each distance: one each for the near half, logarithmic up to `max_distance` for the far half.

    Args:
        distance: int32[...], query minus key.
        num_buckets: even; half of them are for later keys if `bidirectional`, else later keys share bucket 0.
        max_distance: distances from here on share the last bucket.

    Source: T5 (arXiv:1910.10683) section 2.1; the released code.
    """
    offset = jnp.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset, distance = jnp.where(distance < 0, num_buckets, 0), jnp.abs(distance)
    distance, exact = jnp.maximum(distance, 0), num_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)
