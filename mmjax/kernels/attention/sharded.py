"""Runs an implementation on each device's own rows, heads and queries.

XLA cannot split a loop over rows, or a Pallas kernel, by itself: it would gather the whole batch on every device.
And with Explicit axes, no einsum takes queries and keys that are both split along the sequence.
An interval needs no change for a part of the queries, so queries may be split along the sequence too; every device
then reads all keys of its rows and heads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from mmjax.kernels.attention.mask import IntervalMask

# Mesh axes that each dimension is split over.
ROWS, QUERIES, HEADS = ("data", "fsdp"), ("seq",), ("model",)


def on_shards(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Wraps an implementation (see `api.Implementation.run`) so that it works within the current mesh.

    Without a mesh, or inside a `shard_map` that has taken all its axes, it is the implementation itself. A dimension
    stays whole where its size is not a multiple of the devices.
    """

    @functools.wraps(run)
    def wrapped(q, k, v, *, mask, rotary, bias, **numbers):
        mesh = jax.sharding.get_abstract_mesh()
        free = {a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}
        if math.prod(mesh.shape[a] for a in free) == 1:
            return run(q, k, v, mask=mask, rotary=rotary, bias=bias, **numbers)

        def local(q, k, v, mask, rotary, bias):
            return run(q, k, v, mask=mask, rotary=rotary, bias=bias, **numbers)

        args = q, k, v, mask, rotary, bias
        specs = _specs(
            *args,
            rows=_axes(mesh, free, ROWS, q.shape[0]),
            queries=_axes(mesh, free, QUERIES, q.shape[1]),
            heads=_axes(mesh, free, HEADS, k.shape[2]),
        )
        explicit = AxisType.Explicit in mesh.axis_types
        if explicit:
            args = jax.tree.map(jax.reshard, args, specs)
        out = jax.shard_map(local, in_specs=specs, out_specs=specs[0], axis_names=free, check_vma=False)(*args)
        return jax.reshard(out, jax.typeof(q).sharding.spec) if explicit else out

    return wrapped


def _specs(q, k, v, mask, rotary, bias, *, rows, queries, heads) -> tuple:
    """Partition specs of the six arguments; a bias that all rows share stays whole along them."""
    keys = P(rows, None, heads)
    if rotary is not None:
        rotary = dataclasses.replace(rotary, q_positions=P(rows, queries), k_positions=P(rows))
    if bias is not None:
        bias = P(rows if bias.shape[0] == q.shape[0] else None, heads, queries)
    return P(rows, queries, heads), keys, keys, IntervalMask(P(rows, queries), P(rows, queries)), rotary, bias


def _axes(mesh: AbstractMesh, free: set[str], names: Sequence[str], size: int) -> tuple[str, ...]:
    """Those of `names` that the mesh has free, as long as `size` is a multiple of their devices."""
    axes = ()
    for name in names:
        if name in free and size % math.prod(mesh.shape[a] for a in (*axes, name)) == 0:
            axes += (name,)
    return axes
