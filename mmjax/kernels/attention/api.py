"""The one entry to attention: checks its arguments and chooses an implementation."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels.attention import blockwise as blocks
from mmjax.kernels.attention import pallas_gpu as gpu
from mmjax.kernels.attention import pallas_tpu as tpu
from mmjax.kernels.attention.blockwise import blockwise
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.reference import reference
from mmjax.kernels.attention.ring import Passes
from mmjax.kernels.attention.rotary import Rotary
from mmjax.kernels.attention.sharded import on_shards, splits_keys
from mmjax.kernels.target import platform

SCOPE = "kernels.attention"     # stands in the names of all its operations: profiles show it, and a plan looks for it


class Implementation(NamedTuple):
    """One way to compute attention.

    Attributes:
        name: what callers pass as `implementation`.
        run: takes the arguments of `attention` but for `implementation`, checked, with `scale` a float.
        refuse: takes the same; says why it cannot compute this call, or None if it can.
        suits: takes the same; whether to choose it when the caller does not.
        passes: its two passes, if it has them: then keys that are split over devices stay so (see `ring`).
    """

    name: str
    run: Callable[..., jax.Array]
    refuse: Callable[..., str | None]
    suits: Callable[..., bool]
    passes: Passes | None = None


def _never(*args, **kwargs) -> None:
    return None


def _always(*args, **kwargs) -> bool:
    return True


def _without_blocks(q: jax.Array, k: jax.Array, *args, **kwargs) -> str | None:
    empty = q.size == 0 or k.size == 0
    return f"q {list(q.shape)} and k {list(k.shape)} have nothing to cut into blocks" if empty else None


def _worth_blocks(q: jax.Array, k: jax.Array, *args, **kwargs) -> bool:
    """On a CPU, from the size where blocks measured faster; elsewhere, where the einsum's weights would not fit.

    And wherever the keys are split over devices, which the einsum would gather.
    """
    (b, t, n, _), s = q.shape, k.shape[1]
    if splits_keys(q, k):
        return True
    if platform() == "cpu":
        return t >= 64 and t * s >= 128 * 128
    return 4 * b * n * t * s > 2**30


# In order of preference. The last one computes everything.
IMPLEMENTATIONS = (
    Implementation("pallas_tpu", tpu.pallas_tpu, tpu.refuse, tpu.suits, passes=Passes(tpu.forward, tpu.backward)),
    Implementation("pallas_gpu", gpu.pallas_gpu, gpu.refuse, gpu.suits, passes=Passes(gpu.forward, gpu.backward)),
    Implementation("blockwise", blockwise, refuse=_without_blocks, suits=_worth_blocks,
                   passes=Passes(blocks.forward, blocks.backward)),
    Implementation("reference", reference, refuse=_never, suits=_always),
)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: IntervalMask,
    rotary: Rotary | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Scaled dot-product attention over the interval of keys that each query sees; softmax in float32.

    Args:
        q: float[B, T, N, H] queries.
        k: float[B, S, K, H] keys; N is a multiple of K, and query head n reads key head n // (N / K).
        v: float[B, S, K, H] values.
        mask: which keys each query sees. A query that sees none gets an output and a gradient of exactly 0.
        rotary: turns queries and keys by their positions first; None for neither.
        bias: float[1 or B, N, T, S] added to the logits after `scale`; None for none.
        scale: factor of the logits; None for 1 / sqrt(H).
        soft_cap: bounds the logits, bias included, to ±`soft_cap` by soft_cap * tanh(logits / soft_cap), as Gemma 2
            (arXiv:2408.00118) does; None for no bound.
        implementation: a name of `IMPLEMENTATIONS`, or None to choose by platform and size.

    Returns:
        float[B, T, N, H] in the dtype of `v`.

    Raises:
        ValueError: if shapes or dtypes do not fit, or if the named implementation is unknown or cannot compute this
            call (the message has the reason each implementation gives).
    """
    _check_arrays(q, k, v)
    _check_extras(q, k, mask, rotary, bias)
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap={soft_cap} must be positive, or None for no bound on the logits")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    arguments = dict(mask=mask, rotary=rotary, bias=bias, scale=scale, soft_cap=soft_cap)
    chosen = _choose(implementation, q, k, v, **arguments)
    with jax.named_scope(SCOPE):
        return on_shards(chosen.run, chosen.passes)(q, k, v, **arguments)


def _choose(name: str | None, *args, **kwargs) -> Implementation:
    if name is None:
        able = (i for i in IMPLEMENTATIONS if i.refuse(*args, **kwargs) is None)
        return next(i for i in able if i.suits(*args, **kwargs))
    refusals = {i.name: i.refuse(*args, **kwargs) for i in IMPLEMENTATIONS}
    if name not in refusals:
        raise ValueError(f"implementation={name!r} must be None or one of {', '.join(refusals)}")
    if refusals[name] is not None:
        reasons = "; ".join(f"{other}: {reason or 'can'}" for other, reason in refusals.items())
        raise ValueError(f"implementation={name!r} cannot compute this call; pass None or one that can ({reasons})")
    return next(i for i in IMPLEMENTATIONS if i.name == name)


def _check_arrays(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} must be [B, T, N, H], [B, S, K, H] and "
            f"[B, S, K, H] with N a multiple of K"
        )
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (q, k, v)):
        raise ValueError(f"q {q.dtype}, k {k.dtype} and v {v.dtype} must be floating point; cast them first")


def _check_extras(q, k, mask: IntervalMask, rotary: Rotary | None, bias: jax.Array | None) -> None:
    (b, t, n, _), s = q.shape, k.shape[1]
    for name, bound in mask._asdict().items():
        if bound.shape != (b, t) or not jnp.issubdtype(bound.dtype, jnp.integer):
            raise ValueError(
                f"mask.{name} {bound.dtype}{list(bound.shape)} must be integers of shape [B, T] = {[b, t]}: "
                f"one interval of keys for each query"
            )
    if rotary is not None and (rotary.q_positions.shape[:2] != (b, t) or rotary.k_positions.shape[:2] != (b, s)):
        raise ValueError(
            f"rotary positions {list(rotary.q_positions.shape)} and {list(rotary.k_positions.shape)} must be "
            f"[B, T] = {[b, t]} for queries and [B, S] = {[b, s]} for keys, or have a last dimension of 2 behind them"
        )
    if bias is None:
        return
    if bias.shape not in ((1, n, t, s), (b, n, t, s)) or not jnp.issubdtype(bias.dtype, jnp.floating):
        raise ValueError(
            f"bias {bias.dtype}{list(bias.shape)} must be floating point of shape [1 or B, N, T, S] = {[b, n, t, s]}"
        )
