"""Decoding attention by gathering each row's pages: the oracle of the other implementation, and the path without it."""

import jax

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.reference import reference as attention


def reference(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    mask: IntervalMask,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Arguments and result as `api.decode_attention`."""
    b, _, h = q.shape

    def rows(pages):
        return pages[page_table].reshape(b, -1, pages.shape[2] // h, h)

    return attention(q[:, None], rows(k_pages), rows(v_pages), mask=mask, rotary=None, bias=None, scale=scale,
                     soft_cap=soft_cap)[:, 0]
