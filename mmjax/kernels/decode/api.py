"""The two entries to decoding attention: over pages, and over a cache of one stretch per row."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.rotary import Rotary
from mmjax.kernels.decode.pallas_tpu import pallas_tpu
from mmjax.kernels.decode.reference import reference
from mmjax.kernels.placement import HEADS, ROWS, axes_for, free_axes, is_explicit, num_devices
from mmjax.kernels.target import platform

IMPLEMENTATIONS = {"pallas_tpu": pallas_tpu, "reference": reference}


def decode_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    *,
    mask: IntervalMask,
    rotary: Rotary | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of one query per row to the keys on the row's pages; softmax in float32.

    A cache of one stretch per row is one page per row. A ring buffer is one, too, once `stop` is at most its size:
    keys are stored rotated, so that their order does not matter.

    Args:
        q: float[B, N, H] queries; N is a multiple of K, and query head n reads key head n // (N / K).
        k_pages: float[P, Z, K·H] keys, heads side by side: a TPU stores them without padding whatever K and H are.
        v_pages: float[P, Z, K·H] values.
        page_table: int32[B, C] the pages of each row in order. Pages outside the interval are not read; pages of 128
            keys or more are read fastest.
        mask: int32[B, 1] bounds, counting keys from the row's first page. A row that sees none gives exactly 0.
        rotary: turns the queries by `q_positions` int32[B, 1] first. Keys must have been turned when they were stored.
        scale, soft_cap: as for `attention`.
        implementation: a name of `IMPLEMENTATIONS`, or None: "pallas_tpu" on a TPU, "reference" elsewhere.

    Returns:
        float[B, N, H] in the dtype of `q`.

    Raises:
        ValueError: if shapes do not fit, or for an unknown implementation.
    """
    _check(q, k_pages, v_pages, page_table, mask)
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation={implementation!r} must be None or one of {', '.join(IMPLEMENTATIONS)}")
    chosen = implementation or ("pallas_tpu" if platform() == "tpu" else "reference")
    if rotary is not None:
        q = rotary.rotate_q(q[:, None])[:, 0]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out = IMPLEMENTATIONS[chosen](q, k_pages, v_pages, page_table, mask, scale=scale, soft_cap=soft_cap)
    return out.astype(q.dtype)


def cached_attention(q: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array, *, mask: IntervalMask, **options
                     ) -> jax.Array:
    """`decode_attention` to one layer of a cache float[L, B, S, K·H], which is not copied; on any mesh.

    Args:
        q: float[B, N, H].
        k, v: float[L, B, S, K·H].
        layer: int32[].
        mask: int32[B, 1] bounds.
        **options: the others of `decode_attention` but for `rotary`.
    """
    def local(q, k, v, layer, mask):
        num_rows = q.shape[0]
        table = layer * num_rows + jnp.arange(num_rows, dtype=jnp.int32)[:, None]
        pages = (x.reshape(-1, *x.shape[2:]) for x in (k, v))
        return decode_attention(q, *pages, table, mask=mask, **options)

    _, free = free_axes()
    if num_devices(free) == 1:
        return local(q, k, v, layer, mask)
    rows, heads = axes_for(ROWS, q.shape[0]), axes_for(HEADS, k.shape[3] // q.shape[2])
    specs = P(rows, heads), P(None, rows, None, heads), P(None, rows, None, heads), P(), IntervalMask(P(rows), P(rows))
    args = q, k, v, jnp.asarray(layer), mask
    if is_explicit():
        args = jax.tree.map(jax.reshard, args, specs)
    run = functools.partial(jax.shard_map, in_specs=specs, out_specs=specs[0], axis_names=free, check_vma=False)
    return run(local)(*args)


def _check(q, k_pages, v_pages, page_table, mask: IntervalMask) -> None:
    if q.ndim != 3 or k_pages.ndim != 3 or k_pages.shape != v_pages.shape:
        raise ValueError(
            f"q {list(q.shape)}, k_pages {list(k_pages.shape)} and v_pages {list(v_pages.shape)} must be [B, N, H], "
            f"[P, Z, K·H] and [P, Z, K·H]")
    num_kv_heads, rest = divmod(k_pages.shape[2], q.shape[2])
    if rest or not num_kv_heads or q.shape[1] % num_kv_heads:
        raise ValueError(
            f"k_pages {list(k_pages.shape)} must have K·H features with H={q.shape[2]} and K a divisor of "
            f"N={q.shape[1]}, the heads of q")
    if page_table.ndim != 2 or {len(page_table), *(len(x) for x in mask)} != {len(q)} or mask.start.shape[1:] != (1,):
        raise ValueError(
            f"page_table {list(page_table.shape)} must be [B, C] and mask {list(mask.start.shape)} [B, 1] with "
            f"B={len(q)} rows")
