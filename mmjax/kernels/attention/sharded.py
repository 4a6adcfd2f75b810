"""Runs an implementation on each device's own rows, heads and part of the sequence.

XLA cannot split a loop over rows, or a Pallas kernel, by itself: it would gather the whole batch on every device.
And with Explicit axes, no einsum takes queries and keys that are both split along the sequence.
An interval needs no change for a part of the queries. For a part of the keys it moves by an offset: an implementation
that gives its passes runs as a ring and no device ever holds all keys. With any other one, or where the keys are no
multiple of the devices, every device reads all keys of its rows and heads.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.ring import Passes, ring_attention
from mmjax.kernels.placement import HEADS, ROWS, SEQUENCE, axes_for, free_axes, is_explicit, num_devices


def on_shards(run: Callable[..., jax.Array], passes: Passes | None = None) -> Callable[..., jax.Array]:
    """Wraps an implementation (see `api.Implementation`) so that it works within the current mesh.

    Without a mesh, or inside a `shard_map` that has taken all its axes, it is the implementation itself. A dimension
    stays whole where its size is not a multiple of the devices.
    """

    @functools.wraps(run)
    def wrapped(q, k, v, *, mask, rotary, bias, **numbers):
        _, free = free_axes()
        if num_devices(free) == 1:
            return run(q, k, v, mask=mask, rotary=rotary, bias=bias, **numbers)
        is_ring = passes is not None and splits_keys(q, k)
        size = num_devices(SEQUENCE) if is_ring else 1

        def local(index, q, k, v, mask, rotary, bias):
            part = functools.partial(ring_attention, passes, SEQUENCE, size, index[0]) if is_ring else run
            return part(q, k, v, mask=mask, rotary=rotary, bias=bias, **numbers)

        args = jnp.arange(size, dtype=jnp.int32), q, k, v, mask, rotary, bias
        specs = P(SEQUENCE if is_ring else None), *_specs(
            *args[1:],
            rows=axes_for(ROWS, q.shape[0]),
            queries=axes_for(SEQUENCE, q.shape[1]),
            keys=SEQUENCE if is_ring else (),
            heads=axes_for(HEADS, k.shape[2]),
        )
        if is_explicit():
            args = jax.tree.map(jax.reshard, args, specs)
        out = jax.shard_map(local, in_specs=specs, out_specs=specs[1], axis_names=free, check_vma=False)(*args)
        return jax.reshard(out, jax.typeof(q).sharding.spec) if is_explicit() else out

    return wrapped


def splits_keys(q: jax.Array, k: jax.Array) -> bool:
    """Whether the current mesh splits both the queries and the keys of these arrays along the sequence."""
    _, free = free_axes()
    if not free.issuperset(SEQUENCE):
        return False
    size = num_devices(SEQUENCE)
    return size > 1 and q.shape[1] % size == 0 and k.shape[1] % size == 0


def _specs(q, k, v, mask, rotary, bias, *, rows, queries, keys, heads) -> tuple:
    """Partition specs of the six arguments; a bias that all rows share stays whole along them."""
    kv = P(rows, keys, heads)
    if rotary is not None:
        rotary = dataclasses.replace(rotary, q_positions=P(rows, queries), k_positions=P(rows, keys))
    if bias is not None:
        bias = P(rows if bias.shape[0] == q.shape[0] else None, heads, queries)
    return P(rows, queries, heads), kv, kv, IntervalMask(P(rows, queries), P(rows, queries)), rotary, bias
