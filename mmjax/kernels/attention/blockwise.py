"""Attention in blocks of queries and keys with plain XLA operations: O(T) memory, own backward, on every platform.

Rows and key heads are taken one after the other, so that a block of logits stays in cache. For each block of queries
the loop over keys runs from the smallest `start` to the largest `stop` of its rows and no further: keys that nobody
in the block sees cost nothing, in the backward pass as in the forward pass.

Letters beside those of the library: M = B K pairs of row and key head, C blocks of queries in a row, R rows of a
block: its queries times the G heads that share the key head, query-major.

Source: FlashAttention-2 (arXiv:2307.08691) algorithms 1 and 2, here with the query loop outside in both.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.rotary import Rotary

LOWEST = -1e30  # logit of a hidden key; finite, so that a row without keys has no inf - inf


def blockwise(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: IntervalMask,
    rotary: Rotary | None,
    bias: jax.Array | None,
    scale: float,
    soft_cap: float | None = None,
    block_rows: int = 128,
    block_keys: int = 128,
) -> jax.Array:
    """Computes softmax(cap(scale q k^T + bias)) v over the visible keys; arguments and result as in `api.attention`.

    Args:
        block_rows: upper bound of R, queries times the heads that share a key head. On a CPU, 128 took the least
            processor time of 64 to 512 for causal, packed and per-image masks: the tile stays in the L2 cache.
        block_keys: upper bound of the keys of a block.
    """
    return _attend(q, k, v, mask, rotary, bias, _Form(scale, soft_cap, block_rows, block_keys))


def forward(q, k, v, *, mask, rotary, bias, **numbers) -> tuple[jax.Array, jax.Array]:
    """The forward pass alone, see `ring.Passes`; arguments as `blockwise`."""
    return _forward(q, k, v, mask, rotary, bias, _Form(**numbers))


def backward(q, k, v, out, lse, d_out, *, mask, rotary, bias, **numbers) -> tuple[jax.Array | None, ...]:
    """The backward pass alone, see `ring.Passes`; arguments as `blockwise`."""
    return _backward(q, k, v, mask, rotary, bias, out, lse, d_out, _Form(**numbers))


class _Form(NamedTuple):
    """What is no array: the numbers and the largest blocks, from which `sized` makes the blocks of given arrays."""

    scale: float
    soft_cap: float | None = None
    block_rows: int = 128
    block_keys: int = 128

    def sized(self, q, k) -> "_Form":
        rows = _even(q.shape[1], max(self.block_rows // (q.shape[2] // k.shape[2]), 1))
        return self._replace(block_rows=rows, block_keys=_even(k.shape[1], self.block_keys))


class _Tile(NamedTuple):
    """Blocks of queries; leading axes [M, C], which the loops take away.

    Attributes:
        q: float[R, H].
        start, stop: int32[R] intervals of keys.
        first: int32[] smallest start of the rows that see anything.
        count: int32[] blocks of keys from there to the largest stop.
        bias_row: int32[] where its bias stands.
    """

    q: jax.Array
    start: jax.Array
    stop: jax.Array
    first: jax.Array
    count: jax.Array
    bias_row: jax.Array


def _forward(q, k, v, mask, rotary, bias, form: _Form) -> tuple[jax.Array, jax.Array]:
    """float[B, T, N, H] output and float32[B, N, T] log-sum-exp of the logits; far below 0 for a row without keys."""
    form = form.sized(q, k)
    q, k = _rotate(q, k, rotary)
    bias_tiles = _bias_to_tiles(bias, k.shape[2], form.block_rows)

    def head(xs):
        tiles, keys, values = xs

        def tile(tile):
            def step(j, state):
                top, total, out = state
                logits, at = _logits(tile, keys, bias_tiles, j, form)
                new_top = jnp.maximum(top, logits.max(1))
                weights, decay = jnp.exp(logits - new_top[:, None]), jnp.exp(top - new_top)
                new = _dot("rs,sh->rh", weights.astype(v.dtype), _rows(values, at, form.block_keys))
                return new_top, total * decay + weights.sum(1), out * decay[:, None] + new

            num_rows = tile.q.shape[0]
            nothing = _full(num_rows, LOWEST / 2), _full(num_rows), _full(tile.q.shape)
            top, total, out = jax.lax.fori_loop(jnp.int32(0), tile.count, step, nothing)
            total = jnp.where(total == 0, 1, total)
            return (out / total[:, None]).astype(v.dtype), top + jnp.log(total)

        return jax.lax.map(tile, tiles)

    out, lse = jax.lax.map(head, (_tiles(q, k, mask, form), _to_heads(k), _to_heads(v)))
    lse = _from_tiles(lse[..., None], (*q.shape[:3], 1))[..., 0].swapaxes(1, 2)
    return _from_tiles(out, q.shape), lse


def _backward(q, k, v, mask, rotary, bias, out, lse, d_out, form: _Form):
    """Gradients of q, k, v and bias. With `out` and `lse` of more keys than `k` has, it is the part of these keys."""
    form = form.sized(q, k)
    (q, k), turn_back = jax.vjp(functools.partial(_rotate, rotary=rotary), q, k)
    bias_tiles = _bias_to_tiles(bias, k.shape[2], form.block_rows)
    d_bias = None if bias is None else jnp.zeros_like(bias_tiles, jnp.float32)
    d_out = d_out.astype(v.dtype)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    lse = lse.swapaxes(1, 2)[..., None]
    d_out, delta, lse = (_to_tiles(x, k.shape[2], form.block_rows) for x in (d_out, delta, lse))

    def head(d_bias, xs):
        tiles, keys, values = xs[:3]

        def tile(state, xs):
            tile, d_out, delta, lse = xs  # the last two are [R, 1]
            zero = jnp.int32(0)
            q_t, d_out_t = tile.q.T, d_out.T  # turned once: the products below then have no large transpose

            def step(j, state):
                d_q, d_k, d_v, d_bias = state
                logits, at = _logits(tile, keys, bias_tiles, j, form)
                weights = jnp.exp(logits - lse)
                d_weights = _dot("rh,sh->rs", d_out, _rows(values, at, form.block_keys))
                d_logits = weights * (d_weights - delta)
                if form.soft_cap is not None:  # tanh' is 1 - tanh^2; a hidden logit is far below -soft_cap
                    d_logits *= 1 - jnp.square(jnp.maximum(logits / form.soft_cap, -1))
                if d_bias is not None:
                    d_bias = _add(d_bias, d_logits[None], (tile.bias_row % len(bias_tiles), zero, at))
                d_logits = d_logits.astype(q.dtype)
                d_q += _dot("rs,sh->rh", d_logits, _rows(keys, at, form.block_keys))
                d_k = _add(d_k, _dot("hr,rs->hs", q_t, d_logits), (zero, at))
                d_v = _add(d_v, _dot("hr,rs->hs", d_out_t, weights.astype(v.dtype)), (zero, at))
                return d_q, d_k, d_v, d_bias

            d_q, *state = jax.lax.fori_loop(jnp.int32(0), tile.count, step, (_full(tile.q.shape), *state))
            return tuple(state), (d_q * form.scale).astype(q.dtype)

        zeros = _full(keys.shape[::-1])
        (d_k, d_v, d_bias), d_q = jax.lax.scan(tile, (zeros, zeros, d_bias), (tiles, *xs[3:]))
        return d_bias, (d_q, (d_k.T * form.scale).astype(k.dtype), d_v.T.astype(v.dtype))

    xs = _tiles(q, k, mask, form), _to_heads(k), _to_heads(v), d_out, delta, lse
    d_bias, (d_q, d_k, d_v) = jax.lax.scan(head, d_bias, xs)
    if bias is not None:
        d_bias = _bias_from_tiles(d_bias, bias.shape, k.shape[2], form.block_rows).astype(bias.dtype)
    d_q, d_k = turn_back((_from_tiles(d_q, q.shape), _from_heads(d_k, k.shape)))
    return d_q, d_k, _from_heads(d_v, v.shape), d_bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q, k, v, mask, rotary, bias, form):
    return _forward(q, k, v, mask, rotary, bias, form)[0]


def _save(q, k, v, mask, rotary, bias, form):
    out, lse = _forward(q, k, v, mask, rotary, bias, form)
    return out, (q, k, v, mask, rotary, bias, out, lse)


def _grads(form, saved, d_out):
    d_q, d_k, d_v, d_bias = _backward(*saved, d_out, form)
    return d_q, d_k, d_v, None, None, d_bias


_attend.defvjp(_save, _grads)


def _rotate(q, k, rotary: Rotary | None) -> tuple[jax.Array, jax.Array]:
    return (q, k) if rotary is None else (rotary.rotate_q(q), rotary.rotate_k(k))


def _logits(tile: _Tile, keys, bias_tiles, j, form: _Form) -> tuple[jax.Array, jax.Array]:
    """float32[R, keys] logits of the tile's j-th block of keys, LOWEST where hidden, and the block's first key."""
    size = form.block_keys
    wanted = tile.first + j * size
    at = jnp.minimum(wanted, keys.shape[0] - size)  # the last block moves back into the array
    logits = _dot("rh,sh->rs", tile.q, _rows(keys, at, size)) * form.scale
    if bias_tiles is not None:
        corner = tile.bias_row % len(bias_tiles), jnp.int32(0), at
        logits += jax.lax.dynamic_slice(bias_tiles, corner, (1, tile.q.shape[0], size))[0]
    if form.soft_cap is not None:
        logits = form.soft_cap * jnp.tanh(logits / form.soft_cap)
    index = at + jnp.arange(size, dtype=jnp.int32)
    visible = (jnp.maximum(tile.start, wanted)[:, None] <= index) & (index < tile.stop[:, None])
    return jnp.where(visible, logits, LOWEST), at


def _tiles(q, k, mask: IntervalMask, form: _Form) -> _Tile:
    """Every tile of the call; the leaves have leading axes [M, C]."""
    num_keys, num_heads = k.shape[1:3]
    bounds = (jnp.broadcast_to(bound[..., None, None], (*q.shape[:3], 1)) for bound in mask)
    start, stop = (_to_tiles(bound, num_heads, form.block_rows)[..., 0] for bound in bounds)
    first = jnp.where(start < stop, start, num_keys).min(-1).clip(0)
    last = jnp.where(start < stop, stop, 0).max(-1).clip(max=num_keys)
    count = (jnp.maximum(last - first, 0) + form.block_keys - 1) // form.block_keys
    bias_row = jnp.arange(first.size, dtype=jnp.int32).reshape(first.shape)
    return _Tile(_to_tiles(q, num_heads, form.block_rows), start, stop, first, count, bias_row)


def _to_tiles(x: jax.Array, num_heads: int, block: int) -> jax.Array:
    """[B, T, N, h] -> [M, C, R, h], with zeros for the queries that fill up the last block."""
    b, t, n, h = x.shape
    x = jnp.pad(x, ((0, 0), (0, -t % block), (0, 0), (0, 0)))
    x = x.reshape(b, -1, block, num_heads, n // num_heads, h).transpose(0, 3, 1, 2, 4, 5)
    return x.reshape(b * num_heads, -1, block * n // num_heads, h)


def _from_tiles(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[M, C, R, H] -> `shape`, [B, T, N, H]."""
    b, t, n, h = shape
    num_heads = x.shape[0] // b
    x = x.reshape(b, num_heads, -1, n // num_heads, h).transpose(0, 2, 1, 3, 4)
    return x.reshape(b, -1, n, h)[:, :t]


def _to_heads(x: jax.Array) -> jax.Array:
    """[B, S, K, H] -> [M, S, H]."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _from_heads(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[M, S, H] -> `shape`, [B, S, K, H]."""
    b, s, num_heads, h = shape
    return x.reshape(b, num_heads, s, h).swapaxes(1, 2)


def _bias_to_tiles(bias: jax.Array | None, num_heads: int, block: int) -> jax.Array | None:
    """[b, N, T, S] -> [b K C, R, S]; a bias that all rows share has b = 1."""
    if bias is None:
        return None
    b, n, t, s = bias.shape
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, -t % block), (0, 0)))
    bias = bias.reshape(b, num_heads, n // num_heads, -1, block, s).transpose(0, 1, 3, 4, 2, 5)
    return bias.reshape(-1, block * n // num_heads, s)


def _bias_from_tiles(x: jax.Array, shape: tuple[int, ...], num_heads: int, block: int) -> jax.Array:
    b, n, t, s = shape
    x = x.reshape(b, num_heads, -1, block, n // num_heads, s).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(b, n, -1, s)[:, :, :t]


def _even(length: int, bound: int) -> int:
    """Size of the blocks when `length` is cut into as few equal ones as `bound` allows."""
    return -(-length // -(-length // bound))


def _full(shape, value: float = 0.0) -> jax.Array:
    return jnp.full(shape, value, jnp.float32)


def _dot(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def _add(x: jax.Array, update: jax.Array, at: tuple) -> jax.Array:
    """`x` with `update` added in place, its first corner at `at`."""
    return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, at, update.shape) + update, at)


def _rows(x: jax.Array, at: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, at, size)
