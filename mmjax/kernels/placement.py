"""Which axes of the current mesh a kernel may split an array over.

XLA cannot split a loop or a Pallas kernel by itself; a kernel that runs on a mesh does it with `jax.shard_map`.
"""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType

# Mesh axes that each kind of dimension is split over.
ROWS, SEQUENCE, HEADS, VOCAB, EXPERTS = ("data", "fsdp"), ("seq",), ("model",), ("model",), ("expert",)


def free_axes() -> tuple[AbstractMesh, set[str]]:
    """The current mesh and those of its axes that no `shard_map` around has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh, {a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}


def axes_for(names: Sequence[str], size: int) -> tuple[str, ...]:
    """Those of `names` that the mesh has free, as long as `size` is a multiple of their devices."""
    mesh, free = free_axes()
    axes = ()
    for name in names:
        if name in free and size % num_devices((*axes, name)) == 0:
            axes += (name,)
    return axes


def num_devices(axes: Sequence[str]) -> int:
    """Devices along these axes of the current mesh together."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[a] for a in axes)


def is_explicit() -> bool:
    """Whether arrays must be laid out by `jax.reshard` before a `shard_map` takes them."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
