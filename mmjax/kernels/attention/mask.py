"""Interval masks: every query attends to one contiguous range of keys.

A mask is two integer vectors instead of a T x S array. It costs O(T) memory, lets a kernel skip whole blocks of
keys from the block-wise minimum of `start` and maximum of `stop`, and moves to a shard of the keys by subtraction.

Segment ids number the documents of a packed row 1, 2, ...; 0 is padding. Only runs matter: neighbours with the same
id belong together, so a span id that is 0 in the gaps works too. A query on padding sees nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class IntervalMask(NamedTuple):
    """Which keys each query may attend to; True = attend in the dense form.

    Key s is visible to query t of row b iff `start[b, t] <= s < stop[b, t]`. An empty range (stop <= start) gives an
    attention output, and a gradient, of exactly 0.

    Attributes:
        start: int32[B, T] first visible key.
        stop: int32[B, T] one past the last visible key.
    """

    start: jax.Array
    stop: jax.Array


def causal(segment_ids: jax.Array) -> IntervalMask:
    """Self-attention to the own document, up to and including the query itself.

    Args:
        segment_ids: int32[B, T], 0 on padding.
    """
    first, _ = _runs(segment_ids)
    return _without_padding(first, _index(segment_ids) + 1, segment_ids)


def full(segment_ids: jax.Array) -> IntervalMask:
    """Self-attention in both directions over the own document or span.

    Args:
        segment_ids: int32[B, T], 0 on padding.
    """
    first, end = _runs(segment_ids)
    return _without_padding(first, end, segment_ids)


def prefix(segment_ids: jax.Array, prefix_len: int | jax.Array) -> IntervalMask:
    """Both directions inside the first `prefix_len` tokens of a document, causal after them.

    Args:
        segment_ids: int32[B, T], 0 on padding.
        prefix_len: an int, or int32 that broadcasts to [B, T] ([B, 1] for one per row): the prefix length of the
            document that token t belongs to. A prefix longer than its document ends with it.
    """
    first, end = _runs(segment_ids)
    stop = jnp.minimum(jnp.maximum(_index(segment_ids) + 1, first + prefix_len), end)
    return _without_padding(first, stop, segment_ids)


def sliding_window(segment_ids: jax.Array, window: int) -> IntervalMask:
    """Causal self-attention to the last `window` tokens of the own document, the query included.

    Args:
        segment_ids: int32[B, T], 0 on padding.
        window: number of visible keys, at least 1.

    Raises:
        ValueError: if `window` is smaller than 1.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1: a query always sees itself")
    mask = causal(segment_ids)
    return mask._replace(start=jnp.maximum(mask.start, mask.stop - window))


def left_padded(pad_length: jax.Array, num_tokens: int) -> IntervalMask:
    """Causal self-attention of rows whose padding stands at the left.

    Args:
        pad_length: int32[B], padding tokens before the first real one.
        num_tokens: T, tokens of a row with its padding.
    """
    index = jnp.arange(num_tokens, dtype=jnp.int32)
    return causal((index[None] >= pad_length[:, None]).astype(jnp.int32))


def decode(lengths: jax.Array, num_tokens: int) -> IntervalMask:
    """New tokens over a cache: token j of a row sees the keys already there, and the new ones up to itself.

    Args:
        lengths: int32[B], keys in the cache before the new tokens are written behind them.
        num_tokens: T, new tokens of every row.
    """
    stop = lengths[:, None].astype(jnp.int32) + jnp.arange(1, num_tokens + 1, dtype=jnp.int32)
    return IntervalMask(jnp.zeros_like(stop), stop)


def per_image(image_index: jax.Array, tokens_per_image: int) -> IntervalMask:
    """Cross-attention to the visual tokens of one image; the keys are the tokens of all images in order.

    Args:
        image_index: int32[B, T], the image that token t reads, or -1 for none.
        tokens_per_image: R, keys of one image.

    Source: Flamingo (arXiv:2204.14198) section 2.3, the function phi.
    """
    start = jnp.maximum(image_index, 0).astype(jnp.int32) * tokens_per_image
    return IntervalMask(start, start + jnp.where(image_index >= 0, tokens_per_image, 0).astype(jnp.int32))


def all_keys(batch_size: int, num_queries: int, num_keys: int | jax.Array) -> IntervalMask:
    """Every query sees every key.

    Args:
        batch_size: B.
        num_queries: T.
        num_keys: S, or int32[B] where rows have fewer valid keys than there is room for.
    """
    stop = jnp.broadcast_to(jnp.asarray(num_keys, jnp.int32).reshape(-1, 1), (batch_size, num_queries))
    return IntervalMask(jnp.zeros_like(stop), stop)


def shift(mask: IntervalMask, offset: int | jax.Array, num_keys: int) -> IntervalMask:
    """The same mask seen from the shard of keys [offset, offset + num_keys).

    Args:
        mask: over all keys.
        offset: index of the shard's first key, an int or int32[].
        num_keys: keys in the shard.
    """
    return IntervalMask(*(jnp.clip(bound - offset, 0, num_keys) for bound in mask))


def to_dense(mask: IntervalMask, num_keys: int) -> jax.Array:
    """bool[B, T, S], True = attend. For the reference and for tests; kernels never build it."""
    keys = jnp.arange(num_keys, dtype=jnp.int32)
    return (mask.start[..., None] <= keys) & (keys < mask.stop[..., None])


def _index(segment_ids: jax.Array) -> jax.Array:
    return jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]


def _runs(segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index, and index past the end, of the run of equal ids each token belongs to: int32[B, T] twice."""
    index, num_tokens = _index(segment_ids), segment_ids.shape[1]
    change = segment_ids[:, 1:] != segment_ids[:, :-1]
    edge = jnp.ones_like(segment_ids[:, :1], bool)
    first = jnp.where(jnp.concatenate([edge, change], 1), index, 0)
    end = jnp.where(jnp.concatenate([change, edge], 1), index + 1, num_tokens)
    return jax.lax.cummax(first, axis=1), jax.lax.cummin(end, axis=1, reverse=True)


def _without_padding(start: jax.Array, stop: jax.Array, segment_ids: jax.Array) -> IntervalMask:
    return IntervalMask(start, jnp.where(segment_ids > 0, stop, start).astype(jnp.int32))
