"""Ring attention: queries and keys both split along the sequence, no device ever holding all keys.

Every device keeps its queries. Blocks of keys and values are handed from each device to the next until each has been
everywhere; the outputs of the visits are joined by their log-sum-exp. A block that no query of a device sees costs
nothing there but its passing on. In the backward pass, the gradients of keys and values travel with their block and
end where it started.

With one causal document over the whole row the last device computes for every visit and the first for one only, so
that the time is that of the last. Packed documents, windows and intervals of images leave most visits empty on every
device.

Source: Ring Attention (arXiv:2310.01889) algorithm 1, with the passes of FlashAttention-2 (arXiv:2307.08691).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.kernels.attention import mask as masks

LOWEST = -1e30  # log-sum-exp of no keys at all; finite, so that joining two of them has no inf - inf


class Passes(NamedTuple):
    """An implementation's forward and backward pass over some of the keys.

    Attributes:
        forward: (q, k, v, *, mask, rotary, bias, scale, soft_cap) -> (out float[B, T, N, H], lse float32[B, N, T]),
            with lse the log-sum-exp of each query's visible logits, at most -1e29 for a query that sees none.
        backward: (q, k, v, out, lse, d_out, *, as above) -> (d_q, d_k, d_v, d_bias or None). `out` and `lse` may be
            those of more keys than `k` holds; the gradients are then the part that these keys contribute.
    """

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]]


class _Ring(NamedTuple):
    """What is no array.

    Attributes:
        passes: how to compute a visit.
        axis: mesh axis (or axes) along which the sequence is split.
        size: devices along it.
        numbers: the names and values of `scale` and `soft_cap`.
    """

    passes: Passes
    axis: Any
    size: int
    numbers: tuple[tuple[str, float | None], ...]

    def send(self, x):
        """Every array of `x` to the next device of the ring."""
        to_next = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, self.axis, to_next), x)


def ring_attention(passes: Passes, axis: Any, size: int, index: jax.Array, q, k, v, *, mask, rotary, bias, **numbers):
    """Attention inside a `shard_map` that has split queries and keys along the sequence.

    Args:
        passes: how to compute one visit.
        axis: mesh axis (or axes) of the split.
        size: devices along it.
        index: int32[], the place of this device among them.
        q, k, v, mask, rotary, bias: this device's part, with intervals that count keys from the start of the row;
            a bias has the columns of all keys.
        **numbers: `scale` and `soft_cap`.
    """
    return _attend(q, k, v, mask, rotary, bias, index, _Ring(passes, axis, size, tuple(sorted(numbers.items()))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _attend(q, k, v, mask, rotary, bias, index, ring):
    return _forward(q, k, v, mask, rotary, bias, index, ring)[0]


def _forward(q, k, v, mask, rotary, bias, index, ring: _Ring):
    def visit(step, state, block):
        def compute(state):
            out, lse = state
            new_out, new_lse = ring.passes.forward(q, *block[:2], **_seen(mask, rotary, bias, block, at), **numbers)
            total = jnp.logaddexp(lse, jnp.maximum(new_lse, LOWEST))
            weight, new_weight = (jnp.exp(x - total).swapaxes(1, 2)[..., None] for x in (lse, new_lse))
            return out * weight + new_out * new_weight, total

        at = _first_key(index, step, ring, k)
        return jax.lax.cond(_sees_any(mask, at, k), compute, lambda state: state, state)

    def round_(step, carry):
        state, block = carry
        return visit(step, state, block), ring.send(block)

    numbers = dict(ring.numbers)
    nothing = jnp.zeros(q.shape, jnp.float32), jnp.full((q.shape[0], q.shape[2], q.shape[1]), LOWEST, jnp.float32)
    state, block = jax.lax.fori_loop(0, ring.size - 1, round_, (nothing, _block(k, v, rotary)))
    out, lse = visit(ring.size - 1, state, block)      # outside the loop: the last block is sent to nobody
    out = out.astype(v.dtype)
    return out, (q, k, v, mask, rotary, bias, index, out, lse)


def _backward(ring: _Ring, saved, d_out):
    q, k, v, mask, rotary, bias, index, out, lse = saved
    numbers = dict(ring.numbers)

    def visit(step, block):
        """The gradients that one block causes: of q, of itself (k, v), and of its columns of the bias."""
        def compute():
            seen = _seen(mask, rotary, bias, block, at)
            d_q, *d_block, d_bias = ring.passes.backward(q, *block[:2], out, lse, d_out, **seen, **numbers)
            return jax.tree.map(lambda x: x.astype(jnp.float32), (d_q, tuple(d_block), d_bias))

        at = _first_key(index, step, ring, k)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
        d_q, d_block, d_bias = jax.lax.cond(_sees_any(mask, at, k), compute, lambda: zeros)
        return d_q, d_block, d_bias, at

    def round_(step, carry):
        d_q, d_block, d_bias, block = carry
        arrived, following = ring.send(d_block), ring.send(block)       # neither waits for the visit, nor it for them
        new_d_q, new_d_block, new_d_bias, at = visit(step, block)
        d_block = jax.tree.map(jnp.add, arrived, new_d_block)
        return d_q + new_d_q, d_block, _put(d_bias, new_d_bias, at), following

    block = _block(k, v, rotary)
    d_q, d_block, new_d_bias, at = visit(0, block)
    d_bias = _put(None if bias is None else jnp.zeros(bias.shape, jnp.float32), new_d_bias, at)
    carry = jax.lax.fori_loop(1, ring.size, round_, (d_q, d_block, d_bias, ring.send(block)))
    d_q, (d_k, d_v), d_bias = carry[0], ring.send(carry[1]), carry[2]
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None, d_bias, None


_attend.defvjp(_forward, _backward)


def _block(k, v, rotary) -> tuple:
    """What travels: keys, values, and the positions of the keys where there are any."""
    return k, v, None if rotary is None else rotary.k_positions


def _first_key(index, step, ring: _Ring, k) -> jax.Array:
    """Where in the row the block starts that is here after `step` rounds."""
    return (index - step) % ring.size * k.shape[1]


def _sees_any(mask, at, k) -> jax.Array:
    local = masks.shift(mask, at, k.shape[1])
    return (local.start < local.stop).any()


def _seen(mask, rotary, bias, block, at) -> dict:
    """The arguments of a pass that say what this device's queries see of a block whose first key is `at`."""
    k, _, k_positions = block
    size = k.shape[1]
    return dict(
        mask=masks.shift(mask, at, size),
        rotary=None if rotary is None else dataclasses.replace(rotary, k_positions=k_positions),
        bias=None if bias is None else jax.lax.dynamic_slice_in_dim(bias, at, size, axis=3),
    )


def _put(d_bias, columns, at):
    return None if d_bias is None else jax.lax.dynamic_update_slice_in_dim(d_bias, columns, at, axis=3)
