"""Logical axis names, the rules that lay them over the mesh, and the two places that apply them.

Every dimension of every parameter and of the larger activations has a logical name. One table says over which mesh
axes a name is split. FSDP is "embed" over `fsdp`, tensor parallelism is heads, mlp and vocab over `model`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

LogicalAxes = tuple[str | None, ...]

RULES: dict[str, tuple[str, ...]] = {
    # Parameters.
    "layers": (),            # the scanned dimension
    "embed": ("fsdp",),
    "vocab": ("model",),
    "heads": ("model",),
    "kv_heads": ("model",),
    "head_dim": (),
    "mlp": ("model",),
    "latents": (),
    "patch": (),             # a patch's pixels, a position table's rows, frames
    "norm": (),              # scales and biases are too small to split
    # Activations.
    "batch": ("data", "fsdp"),
    "seq": ("seq",),
    "act_embed": (),
    "act_heads": ("model",),
    "act_mlp": ("model",),
    "act_vocab": ("model",),
}


def partition_spec(axes: LogicalAxes) -> P:
    """Mesh axes for a tuple of logical names.

    Raises:
        ValueError: for a name without a rule.
    """
    return P(*(_mesh_axes(name) or None for name in axes))


def _mesh_axes(name: str | None) -> tuple[str, ...]:
    if name is not None and name not in RULES:
        raise ValueError(f"unknown logical axis {name!r}; the names are {', '.join(RULES)}")
    return RULES[name] if name else ()


def _num_parts(name: str | None, sizes: Mapping[str, int]) -> int:
    """Pieces into which a dimension of that name is cut on a mesh of these sizes."""
    return math.prod(sizes[axis] for axis in _mesh_axes(name))


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an array over the current mesh by its logical names; does nothing without a mesh.

    Args:
        x: any array. A dimension that is no multiple of its devices (one row, to generate from) stays whole.
        *axes: one logical name (or None) per dimension of `x`.

    Raises:
        ValueError: for a name without a rule, if there is a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    fits = [dim % _num_parts(name, mesh.shape) == 0 for dim, name in zip(x.shape, axes, strict=True)]
    spec = partition_spec(tuple(name if fit else None for name, fit in zip(axes, fits, strict=True)))
    if AxisType.Explicit in mesh.axis_types:
        return jax.reshard(x, spec)
    return jax.lax.with_sharding_constraint(x, spec)


def param_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """Shardings of a parameter tree.

    Args:
        axes: tree of tuples of logical names, as `model.axes`.
        shapes: the same tree of arrays or `jax.ShapeDtypeStruct`.
        mesh: the mesh of the run.

    Raises:
        ValueError: if a split dimension is not a multiple of the devices it is split over; the message has the
            parameter's path, the size and the mesh axes.
    """
    def one(path, shape, names):
        spec = partition_spec(names)
        _check_divisible(jax.tree_util.keystr(path, simple=True, separator="/"), shape.shape, names, mesh.shape)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def _check_divisible(path: str, shape: tuple[int, ...], names: LogicalAxes, sizes: Mapping[str, int]):
    for dim, name in zip(shape, names, strict=True):
        parts = _num_parts(name, sizes)
        if dim % parts:
            raise ValueError(
                f"parameter {path} {shape}: dimension {name!r} = {dim} must be a multiple of the {parts} devices on "
                f"mesh axis {' x '.join(_mesh_axes(name))}; use a divisor of {dim} there")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch leaf: its leading dimension, the rows, over the data and fsdp axes."""
    return NamedSharding(mesh, P(RULES["batch"]))
