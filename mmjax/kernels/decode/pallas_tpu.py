"""Decoding attention on a TPU: reads the blocks of keys that a row sees, and no others.

The grid is one list of (row, block) pairs, made outside from the intervals, as long as there are blocks to read: so
the copies of the next row's keys run while the last ones of this row are computed.

All heads of a key stand side by side in one row of K·H features. Query heads are laid out likewise, each with zeros at
the other key heads: one matrix product then has the logits of all heads. Decoding waits for memory, not for these
products.

Letters beside those of the library: P pages, Z keys of a page, C pages of a row, R query heads with all key heads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.kernels.attention.mask import IntervalMask

LOWEST = -1e30              # logit of a hidden key; finite, so that a row without keys has no inf - inf
BLOCK_ELEMENTS = 2**19      # of keys, and of values: 1 MB in bfloat16, twice each


class Steps(NamedTuple):
    """The list of blocks to read; entries from `count` on are never looked at.

    Attributes:
        row: int32[?] rows in order, each at least once.
        block: int32[?] number of the block among those of the row's pages.
        count: int32[1].
    """

    row: jax.Array
    block: jax.Array
    count: jax.Array


class _Form(NamedTuple):
    """What is no array: keys of a page, of a block, blocks of a page, pages of a row, and the two numbers."""

    page: int
    block: int
    per_page: int
    num_pages: int
    scale: float
    soft_cap: float | None


def pallas_tpu(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    mask: IntervalMask,
    *,
    scale: float,
    soft_cap: float | None,
    block_elements: int = BLOCK_ELEMENTS,
    interpret: bool = False,
) -> jax.Array:
    """Arguments and result as `api.decode_attention`; `block_elements` bounds the numbers of a block of keys."""
    (b, n, h), (p, z, kh) = q.shape, k_pages.shape
    block = z if z * kh <= block_elements else min(z, max(block_elements // kh // 128, 1) * 128)
    form = _Form(z, block, -(-z // block), page_table.shape[1], scale, soft_cap)
    start, stop = (jnp.clip(x[:, 0], 0, form.num_pages * z).astype(jnp.int32) for x in mask)
    steps = list_steps(start, stop, form)
    tables = *steps, start, stop, jnp.clip(page_table, 0, p - 1).astype(jnp.int32).reshape(-1)

    def row_index(s, row, *_):
        return row[s], 0, 0

    def key_index(s, row, block, count, start, stop, pages):
        return pages[row[s] * form.num_pages + block[s] // form.per_page], block[s] % form.per_page, 0

    heads = pl.BlockSpec((1, n, kh), row_index)
    keys = pl.BlockSpec((1, block, kh), key_index)
    wide = pl.pallas_call(
        functools.partial(_kernel, form=form),
        out_shape=jax.ShapeDtypeStruct((b, n, kh), q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables), grid=(steps.count[0],), in_specs=[heads, keys, keys], out_specs=heads,
            scratch_shapes=[pltpu.VMEM((n, 1), jnp.float32), pltpu.VMEM((n, 1), jnp.float32),
                            pltpu.VMEM((n, kh), jnp.float32)]),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        name="decode_attention",
        interpret=interpret,
    )(*tables, _spread(q.astype(k_pages.dtype), kh // h), k_pages, v_pages)
    groups = wide.reshape(b, kh // h, -1, kh // h, h)
    return jnp.einsum("bkgkh->bkgh", groups).reshape(b, n, h)


def list_steps(start: jax.Array, stop: jax.Array, form: _Form) -> Steps:
    """The blocks that each row sees, one after the other; a row that sees nothing has one block, all hidden."""
    def block_of(key):
        return key // form.page * form.per_page + key % form.page // form.block

    first = jnp.where(start < stop, block_of(start), 0)
    count = jnp.where(start < stop, block_of(stop - 1) - first + 1, 1)
    end = jnp.cumsum(count, dtype=jnp.int32)
    index = jnp.arange(len(start) * form.num_pages * form.per_page, dtype=jnp.int32)
    row = jnp.minimum(jnp.searchsorted(end, index, side="right"), len(start) - 1).astype(jnp.int32)
    return Steps(row, first[row] + index - (end - count)[row], end[-1:])


def _spread(q: jax.Array, num_kv_heads: int) -> jax.Array:
    """[B, N, H] -> [B, N, K·H]: each head at the place of the key head it reads, zeros elsewhere."""
    b, n, h = q.shape
    groups = q.reshape(b, num_kv_heads, -1, 1, h) * jnp.eye(num_kv_heads, dtype=q.dtype)[:, None, :, None]
    return groups.reshape(b, n, num_kv_heads * h)


def _kernel(row, block, count, start, stop, pages, q, k, v, out, top, total, acc, *, form: _Form):
    s = pl.program_id(0)
    here = row[s]
    is_first = (s == 0) | (row[jnp.maximum(s - 1, 0)] != here)
    is_last = (s == count[0] - 1) | (row[jnp.minimum(s + 1, row.shape[0] - 1)] != here)

    @pl.when(is_first)
    def _():
        top[...] = jnp.full(top.shape, LOWEST / 2, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    page = block[s] // form.per_page
    first_key = page * form.page + block[s] % form.per_page * form.block
    end = jnp.minimum(stop[here], (page + 1) * form.page)   # the page's last block may reach past its end
    precision = jax.lax.Precision.HIGHEST if k.dtype == jnp.float32 else None
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision)

    logits = dot(q[0], k[0], (((1,), (1,)), ((), ()))) * form.scale
    if form.soft_cap is not None:
        logits = form.soft_cap * jnp.tanh(logits / form.soft_cap)
    key = first_key + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    logits = jnp.where((start[here] <= key) & (key < end), logits, LOWEST)
    new_top = jnp.maximum(top[...], logits.max(1, keepdims=True))
    weights, decay = jnp.exp(logits - new_top), jnp.exp(top[...] - new_top)
    top[...] = new_top
    total[...] = total[...] * decay + weights.sum(1, keepdims=True)
    # What lies behind the end was never written: it may be NaN, and 0 * NaN is NaN.
    value_key = first_key + jax.lax.broadcasted_iota(jnp.int32, v.shape[1:], 0)
    values = jnp.where((start[here] <= value_key) & (value_key < end), v[0], jnp.zeros_like(v[0]))
    acc[...] = acc[...] * decay + dot(weights.astype(v.dtype), values, (((1,), (0,)), ((), ())))

    @pl.when(is_last)
    def _():
        out[0] = (acc[...] / jnp.where(total[...] == 0, 1, total[...])).astype(out.dtype)
