"""Logical axis names, the rules that lay them over the mesh, and the two places that apply them.

Every dimension of every parameter and of the larger activations has a logical name. One table says over which mesh
axes a name is split. FSDP is "embed" over `fsdp`, tensor parallelism is heads, mlp and vocab over `model`. A tower, a
top-level part of the parameters such as "vision", may have rules of its own.
"""

import contextlib
import contextvars
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.parallel.mesh import AXES

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
    "experts": ("expert",),
    "latents": (),
    "rank": (),              # of low-rank adapters
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


Rules = Mapping[str, tuple[str, ...]]
TowerRules = Mapping[str, Rules | Literal["replicated"]]
REPLICATED: Rules = {name: () for name in RULES if name not in ("batch", "seq")}

_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=RULES)
_tower_rules: contextvars.ContextVar[TowerRules] = contextvars.ContextVar(
    "tower_rules", default=types.MappingProxyType({}))


def rules_of(tower: str, towers: TowerRules) -> Rules:
    """The complete rules of a tower: its own, or "replicated" (on every device), over the common ones.

    Raises:
        ValueError: for an unknown logical name or mesh axis.
    """
    own = towers.get(tower, {})
    own = REPLICATED if own == "replicated" else own
    for name, axes in own.items():
        if name not in RULES:
            raise ValueError(f"sharding.{tower}: unknown logical axis {name!r}; the names are {', '.join(RULES)}")
        if unknown := [axis for axis in axes if axis not in AXES]:
            raise ValueError(f"sharding.{tower}.{name}: unknown mesh axis {unknown[0]!r}; "
                             f"the axes are {', '.join(AXES)}")
    return RULES | own


@contextlib.contextmanager
def use_towers(towers: TowerRules) -> Iterator[None]:
    """Sets which rules `tower` finds, while something is traced."""
    token = _tower_rules.set(towers)
    try:
        yield
    finally:
        _tower_rules.reset(token)


@contextlib.contextmanager
def tower(name: str) -> Iterator[None]:
    """Lays activations out by the rules of a tower; models wrap it round the computation of each that may have some."""
    token = _rules.set(rules_of(name, _tower_rules.get()))
    try:
        yield
    finally:
        _rules.reset(token)


def partition_spec(axes: LogicalAxes, rules: Rules = RULES) -> P:
    """Mesh axes for a tuple of logical names.

    Raises:
        ValueError: for a name without a rule.
    """
    return P(*(_mesh_axes(name, rules) or None for name in axes))


def _mesh_axes(name: str | None, rules: Rules) -> tuple[str, ...]:
    if name is not None and name not in rules:
        raise ValueError(f"unknown logical axis {name!r}; the names are {', '.join(rules)}")
    return tuple(rules[name]) if name else ()


def _num_parts(name: str | None, rules: Rules, sizes: Mapping[str, int]) -> int:
    """Pieces into which a dimension of that name is cut on a mesh of these sizes."""
    return math.prod(sizes[axis] for axis in _mesh_axes(name, rules))


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an array over the current mesh by its logical names; does nothing without a mesh.

    Args:
        x: any array. A dimension that is no multiple of its devices (one row, to generate from) stays whole.
        *axes: one logical name (or None) per dimension of `x`.

    Raises:
        ValueError: for a name without a rule, if there is a mesh.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), _rules.get()
    if mesh.empty or mesh.size == 1:
        return x
    fits = [dim % _num_parts(name, rules, mesh.shape) == 0 for dim, name in zip(x.shape, axes, strict=True)]
    spec = partition_spec(tuple(name if fit else None for name, fit in zip(axes, fits, strict=True)), rules)
    if AxisType.Explicit in mesh.axis_types:
        return jax.reshard(x, spec)
    return jax.lax.with_sharding_constraint(x, spec)


def layout(shape: tuple[int, ...], *axes: str | None) -> P | None:
    """What operations take as `out_sharding`: the layout by logical names on an Explicit mesh, otherwise None.

    Args:
        shape: of the array. A dimension that is no multiple of its devices stays whole.
        *axes: one logical name (or None) per dimension.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), _rules.get()
    if AxisType.Explicit not in mesh.axis_types:
        return None
    fits = [dim % _num_parts(name, rules, mesh.shape) == 0 for dim, name in zip(shape, axes, strict=True)]
    return partition_spec(tuple(name if fit else None for name, fit in zip(axes, fits, strict=True)), rules)


def reshape(x: jax.Array, shape: tuple[int, ...], *axes: str | None) -> jax.Array:
    """`x.reshape(shape)`, of which an Explicit mesh wants to know how the result lies; see `layout`."""
    return jax.lax.reshape(x, shape, out_sharding=layout(shape, *axes))


def gather(param: jax.Array) -> jax.Array:
    """A parameter as computations take it, whole along the axes that the rows are split over (FSDP).

    XLA gathers by itself on an Auto mesh; an Explicit one wants it said.
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return param
    return jax.reshard(param, P(*(_without_rows(axes) for axes in jax.typeof(param).sharding.spec)))


def _without_rows(axes: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
    kept = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in kept if axis not in RULES["batch"]) or None


def param_shardings(axes: Any, shapes: Any, mesh: Mesh, towers: TowerRules | None = None) -> Any:
    """Shardings of a parameter tree.

    Args:
        axes: tree of tuples of logical names, as `model.axes`.
        shapes: the same tree of arrays or `jax.ShapeDtypeStruct`.
        mesh: the mesh of the run.
        towers: top-level name of the tree -> rules that differ there, or "replicated".

    Raises:
        ValueError: if a split dimension is not a multiple of the devices it is split over, or two dimensions are
            split over one mesh axis; the message has the parameter's path, the sizes and the mesh axes. Also if
            `towers` has an unknown name.
    """
    towers = towers or {}
    if unknown := [name for name in towers if name not in shapes]:
        raise ValueError(f"sharding: the model has no part {unknown[0]!r}; its parts are {', '.join(shapes)}")

    def one(path, shape, names):
        rules = rules_of(path[0].key, towers)
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        _check_divisible(where, shape.shape, names, rules, mesh.shape)
        return NamedSharding(mesh, partition_spec(names, rules))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def _check_divisible(path: str, shape: tuple[int, ...], names: LogicalAxes, rules: Rules, sizes: Mapping[str, int]):
    used: dict[str, str | None] = {}
    for dim, name in zip(shape, names, strict=True):
        axes = _mesh_axes(name, rules)
        parts = math.prod(sizes[axis] for axis in axes)
        if dim % parts:
            legal = [str(n) for n in range(1, dim + 1) if dim % n == 0]
            raise ValueError(
                f"parameter {path} {shape}: dimension {name!r} = {dim} must be a multiple of the {parts} devices on "
                f"mesh axis {' x '.join(axes)}; it divides over {_some(legal)}")
        if twice := used.keys() & set(axes):
            axis = min(twice)
            raise ValueError(f"parameter {path} {shape}: both {used[axis]!r} and {name!r} are split over mesh axis "
                             f"{axis!r}; take it from one of their rules")
        used |= dict.fromkeys(axes, name)


def _some(numbers: list[str]) -> str:
    return ", ".join(numbers if len(numbers) <= 12 else [*numbers[:11], "...", numbers[-1]])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch leaf: its leading dimension, the rows, over the data and fsdp axes."""
    return NamedSharding(mesh, P(RULES["batch"]))
