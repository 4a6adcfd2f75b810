"""Attention in blocks of queries and keys with plain XLA operations: O(T) memory, own backward, on every platform.

Rows and key heads are taken one after the other, so that a block of logits stays in cache. For each block of queries
the loop over keys runs from the smallest `start` to the largest `stop` of its rows and no further: keys that nobody
in the block sees cost nothing, in the backward pass as in the forward pass.

Tiles are cut out of the arrays, and their results written into them, where they stand: on a CPU at T = 4096, copies in
another layout took a tenth of the time and more than half of the memory. Only keys and values, which every tile reads,
are copied once.

One device of XLA's keeps one CPU core busy here: it runs independent loops over halves of the heads one after the
other, and two heads batched into every product take 1.35 times as long on two cores. More cores need more devices:
heads split over two (`--xla_force_host_platform_device_count=2`) halved the time, from 146 to 74 ms forward and
backward at T = 2048 with 8 heads of 64.

Letter beside those of the library: R rows of a tile, its queries times the G heads that share the key head,
query-major.

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
    block_rows: int | None = None,
    block_keys: int = 128,
) -> jax.Array:
    """Computes softmax(cap(scale q k^T + bias)) v over the visible keys; arguments and result as in `api.attention`.

    Args:
        block_rows: upper bound of R, queries times the heads that share a key head; None for 256, or 128 where T is
            below 2048 and the tiles at the edge of a mask weigh more. On a CPU these took the least processor time of
            64 x 64 to 256 x 256: larger products are split over threads at a loss.
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
    block_rows: int | None = None
    block_keys: int = 128
    group: int = 1

    def sized(self, q, k) -> "_Form":
        """With `group` = G, `block_rows` the queries of a tile and `block_keys` no more than there are."""
        group = q.shape[2] // k.shape[2]
        rows = self.block_rows or (256 if q.shape[1] >= 2048 else 128)
        rows = _even(q.shape[1], max(rows // group, 1))
        return self._replace(block_rows=rows, block_keys=_even(k.shape[1], self.block_keys), group=group)

    def whole_tiles(self, x: jax.Array, axis: int = 1) -> jax.Array:
        """`x` with zeros for the queries that fill up the last tile."""
        pad = -x.shape[axis] % self.block_rows
        return jnp.pad(x, [(0, pad * (i == axis)) for i in range(x.ndim)]) if pad else x


class _Place(NamedTuple):
    """Where a tile stands: its row, its key head and its first query, int32[] each."""

    row: jax.Array
    head: jax.Array
    query: jax.Array


class _Tile(NamedTuple):
    """A block of queries.

    Attributes:
        place: where it stands.
        q: float[R, H].
        start, stop: int32[R] intervals of keys.
        first: int32[] smallest start of the rows that see anything.
        count: int32[] blocks of keys from there to the largest stop.
    """

    place: _Place
    q: jax.Array
    start: jax.Array
    stop: jax.Array
    first: jax.Array
    count: jax.Array


def _forward(q, k, v, mask, rotary, bias, form: _Form) -> tuple[jax.Array, jax.Array]:
    """float[B, T, N, H] output and float32[B, N, T] log-sum-exp of the logits; far below 0 for a row without keys."""
    form, num_queries = form.sized(q, k), q.shape[1]
    q, k = _rotate(q, k, rotary)
    q, mask, bias = _whole_tiles(q, mask, bias, form)
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, S, H]
    (num_rows, num_keys, num_heads, _), tiles = k.shape, q.shape[1] // form.block_rows

    def tile(i, state):
        place = _Place(i // (num_heads * tiles), i // tiles % num_heads, i % tiles * form.block_rows)
        tile = _tile(q, mask, place, num_keys, form)

        def step(j, state):
            top, total, out = state
            logits, at = _logits(tile, keys, bias, j, form)
            new_top = jnp.maximum(top, logits.max(1))
            weights, decay = jnp.exp(logits - new_top[:, None]), jnp.exp(top - new_top)
            new = _dot("rs,sh->rh", weights.astype(v.dtype), _block(values, place, at, form))
            return new_top, total * decay + weights.sum(1), out * decay[:, None] + new

        nothing = _full(len(tile.q), LOWEST / 2), _full(len(tile.q)), _full(tile.q.shape)
        top, total, out = jax.lax.fori_loop(jnp.int32(0), tile.count, step, nothing)
        total = jnp.where(total == 0, 1, total)
        done = out / total[:, None], (top + jnp.log(total))[:, None]
        return tuple(_paste(x, part, place, form) for x, part in zip(state, done, strict=True))

    state = jnp.zeros(q.shape, v.dtype), _full((*q.shape[:3], 1))
    out, lse = jax.lax.fori_loop(jnp.int32(0), jnp.int32(num_rows * num_heads * tiles), tile, state)
    return out[:, :num_queries], lse[:, :num_queries, :, 0].swapaxes(1, 2)


def _backward(q, k, v, mask, rotary, bias, out, lse, d_out, form: _Form):
    """Gradients of q, k, v and bias. With `out` and `lse` of more keys than `k` has, it is the part of these keys."""
    form, num_queries = form.sized(q, k), q.shape[1]
    (q, k), turn_back = jax.vjp(functools.partial(_rotate, rotary=rotary), q, k)
    q, mask, bias = _whole_tiles(q, mask, bias, form)
    out, d_out, lse = (form.whole_tiles(x) for x in (out, d_out.astype(v.dtype), lse.swapaxes(1, 2)[..., None]))
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, S, H]
    (num_rows, num_keys, num_heads, head_dim), tiles = k.shape, q.shape[1] // form.block_rows

    def head(i, state):
        def tile(c, state):
            d_q, *state = state
            place = _Place(i // num_heads, i % num_heads, c * form.block_rows)
            tile = _tile(q, mask, place, num_keys, form)
            d_out_t, out_t, lse_t = (_cut(x, place, form) for x in (d_out, out, lse))
            delta = (d_out_t.astype(jnp.float32) * out_t.astype(jnp.float32)).sum(1, keepdims=True)
            q_hr, d_out_hr = tile.q.T, d_out_t.T  # turned once: the products below then have no large transpose

            def step(j, state):
                d_q, d_k, d_v, d_bias = state
                logits, at = _logits(tile, keys, bias, j, form)
                weights = jnp.exp(logits - lse_t)
                d_weights = _dot("rh,sh->rs", d_out_t, _block(values, place, at, form))
                d_logits = weights * (d_weights - delta)
                if form.soft_cap is not None:  # tanh' is 1 - tanh^2; a hidden logit is far below -soft_cap
                    d_logits *= 1 - jnp.square(jnp.maximum(logits / form.soft_cap, -1))
                if d_bias is not None:
                    part = d_logits.reshape(1, form.block_rows, form.group, -1).swapaxes(1, 2)
                    d_bias = _add(d_bias, part, _bias_corner(bias, place, at, form))
                d_logits = d_logits.astype(q.dtype)
                d_q += _dot("rs,sh->rh", d_logits, _block(keys, place, at, form))
                d_k = _add(d_k, _dot("hr,rs->hs", q_hr, d_logits), (jnp.int32(0), at))
                d_v = _add(d_v, _dot("hr,rs->hs", d_out_hr, weights.astype(v.dtype)), (jnp.int32(0), at))
                return d_q, d_k, d_v, d_bias

            d_q_t, *state = jax.lax.fori_loop(jnp.int32(0), tile.count, step, (_full(tile.q.shape), *state))
            return _paste(d_q, d_q_t * form.scale, place, form), *state

        d_q, d_k, d_v, d_bias = state
        zeros = _full((head_dim, num_keys))
        d_q, d_k_hs, d_v_hs, d_bias = jax.lax.fori_loop(
            jnp.int32(0), jnp.int32(tiles), tile, (d_q, zeros, zeros, d_bias)
        )
        corner = i // num_heads, i % num_heads, jnp.int32(0), jnp.int32(0)
        d_k, d_v = (
            jax.lax.dynamic_update_slice(x, part.T.astype(x.dtype)[None, None], corner)
            for x, part in ((d_k, d_k_hs * form.scale), (d_v, d_v_hs))
        )
        return d_q, d_k, d_v, d_bias

    d_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    state = jnp.zeros_like(q), jnp.zeros_like(keys), jnp.zeros_like(values), d_bias
    d_q, d_k, d_v, d_bias = jax.lax.fori_loop(jnp.int32(0), jnp.int32(num_rows * num_heads), head, state)
    if bias is not None:
        d_bias = d_bias[:, :, :num_queries].astype(bias.dtype)
    d_q, d_k = turn_back((d_q[:, :num_queries], d_k.swapaxes(1, 2)))
    return d_q, d_k, d_v.swapaxes(1, 2), d_bias


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


def _whole_tiles(q, mask: IntervalMask, bias, form: _Form):
    """Queries that fill up the last tile have empty intervals."""
    bias = None if bias is None else form.whole_tiles(bias, axis=2)
    mask = IntervalMask(*(form.whole_tiles(bound.astype(jnp.int32)) for bound in mask))
    return form.whole_tiles(q), mask, bias


def _tile(q, mask: IntervalMask, place: _Place, num_keys: int, form: _Form) -> _Tile:
    corner, size = (place.row, place.query), (1, form.block_rows)
    start, stop = (jax.lax.dynamic_slice(bound, corner, size)[0] for bound in mask)
    first = jnp.where(start < stop, start, num_keys).min().clip(0)
    last = jnp.where(start < stop, stop, 0).max().clip(max=num_keys)
    count = (jnp.maximum(last - first, 0) + form.block_keys - 1) // form.block_keys
    start, stop = (jnp.repeat(bound, form.group) for bound in (start, stop))
    return _Tile(place, _cut(q, place, form), start, stop, first, count)


def _logits(tile: _Tile, keys, bias, j, form: _Form) -> tuple[jax.Array, jax.Array]:
    """float32[R, keys] logits of the tile's j-th block of keys, LOWEST where hidden, and the block's first key."""
    size = form.block_keys
    wanted = tile.first + j * size
    at = jnp.minimum(wanted, keys.shape[2] - size)  # the last block moves back into the array
    logits = _dot("rh,sh->rs", tile.q, _block(keys, tile.place, at, form)) * form.scale
    if bias is not None:
        corner = _bias_corner(bias, tile.place, at, form)
        part = jax.lax.dynamic_slice(bias, corner, (1, form.group, form.block_rows, size))
        logits += part[0].swapaxes(0, 1).reshape(logits.shape)
    if form.soft_cap is not None:
        logits = form.soft_cap * jnp.tanh(logits / form.soft_cap)
    index = at + jnp.arange(size, dtype=jnp.int32)
    visible = (jnp.maximum(tile.start, wanted)[:, None] <= index) & (index < tile.stop[:, None])
    return jnp.where(visible, logits, LOWEST), at


def _cut(x: jax.Array, place: _Place, form: _Form) -> jax.Array:
    """[B, T, N, h] -> [R, h], the tile at `place`."""
    size = (1, form.block_rows, form.group, x.shape[3])
    return jax.lax.dynamic_slice(x, _corner(place, form), size).reshape(-1, x.shape[3])


def _paste(x: jax.Array, tile: jax.Array, place: _Place, form: _Form) -> jax.Array:
    """The inverse of `_cut`: `x` with the tile at `place` replaced."""
    tile = tile.astype(x.dtype).reshape(1, form.block_rows, form.group, x.shape[3])
    return jax.lax.dynamic_update_slice(x, tile, _corner(place, form))


def _corner(place: _Place, form: _Form) -> tuple[jax.Array, ...]:
    return place.row, place.query, place.head * form.group, jnp.int32(0)


def _block(x: jax.Array, place: _Place, at: jax.Array, form: _Form) -> jax.Array:
    """[B, K, S, H] -> [keys, H], the block of keys (or values) from `at` that the tile at `place` reads."""
    corner = place.row, place.head, at, jnp.int32(0)
    return jax.lax.dynamic_slice(x, corner, (1, 1, form.block_keys, x.shape[3]))[0, 0]


def _bias_corner(bias: jax.Array, place: _Place, at: jax.Array, form: _Form) -> tuple[jax.Array, ...]:
    """Where the bias of a tile and a block of keys stands in [b, N, T, S]; a bias that all rows share has b = 1."""
    return place.row % len(bias), place.head * form.group, place.query, at


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
