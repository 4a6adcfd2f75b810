"""Attention by einsum: the oracle of the other implementations, and the fastest for small shapes.

It builds the T x S weights. It is kept short rather than fast.
"""

import jax
import jax.numpy as jnp

from mmjax.kernels.attention.mask import IntervalMask, to_dense
from mmjax.kernels.attention.rotary import Rotary


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: IntervalMask,
    rotary: Rotary | None,
    bias: jax.Array | None,
    scale: float,
    soft_cap: float | None = None,
) -> jax.Array:
    """Computes softmax(cap(scale q k^T + bias)) v over the visible keys; arguments and result as in `api.attention`."""
    if rotary is not None:
        q, k = rotary.rotate_q(q), rotary.rotate_k(k)
    b, t, n, h = q.shape
    s, num_kv_heads = k.shape[1:3]
    group = n // num_kv_heads
    q_btkgh, k, v_bskh = (x.astype(jnp.float32) for x in (q.reshape(b, t, num_kv_heads, group, h), k, v))
    logits = jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k).reshape(b, n, t, s) * scale
    if bias is not None:
        logits += bias.astype(jnp.float32)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    weights = _softmax(logits, to_dense(mask, s)[:, None]).reshape(b, num_kv_heads, group, t, s)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v_bskh).reshape(b, t, n, h).astype(v.dtype)


def _softmax(logits: jax.Array, visible: jax.Array) -> jax.Array:
    """Softmax over the visible keys; a query that sees none gets weights, and gradients, of exactly 0."""
    lowest = jnp.finfo(logits.dtype).min  # finite, so that a row without keys has no inf - inf
    logits = jnp.where(visible, logits, lowest)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True, initial=lowest))
    weights = jnp.where(visible, jnp.exp(logits - top), 0)
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)
