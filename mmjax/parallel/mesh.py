"""The device mesh: five named axes, unused ones of size 1, made in one place."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "model", "expert", "seq")


def mesh_shape(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Completes a mesh shape: absent axes get size 1 and one axis of size -1 takes the remaining devices.

    Args:
        sizes: axis name -> number of devices along it, or -1 for "the rest" (at most once).
        num_devices: devices at hand.

    Raises:
        ValueError: for an unknown axis, a size below 1, or a product other than `num_devices`.
    """
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"unknown mesh axis {unknown[0]!r}; the axes are {', '.join(AXES)}")
    shape = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    bad = {axis: size for axis, size in shape.items() if size < 1 and size != -1}
    rest = [axis for axis, size in shape.items() if size == -1]
    if bad or len(rest) > 1:
        raise ValueError(f"mesh sizes {dict(sizes)} must be positive, with at most one -1 for the remaining devices")
    fixed = math.prod(size for size in shape.values() if size != -1)
    if rest:
        shape[rest[0]] = max(num_devices // fixed, 1)
    needed = math.prod(shape.values())
    if needed != num_devices:
        text = " x ".join(f"{axis}={size}" for axis, size in shape.items() if size > 1) or "data=1"
        raise ValueError(
            f"mesh {text} needs {needed} devices but {num_devices} are visible; "
            f"change the mesh (one axis may be -1: the remaining devices) or start with {needed} devices")
    return shape


def make_mesh(sizes: Mapping[str, int], devices: Sequence | None = None, *, explicit: bool = False) -> Mesh:
    """Builds the mesh of a run.

    Args:
        sizes: see `mesh_shape`; `{"fsdp": -1}` shards over all devices.
        devices: the devices to use, `jax.devices()` by default.
        explicit: Explicit axis types, with which JAX checks every sharding at trace time; Auto otherwise.

    Raises:
        ValueError: as `mesh_shape`.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(sizes, len(devices))
    kind = AxisType.Explicit if explicit else AxisType.Auto
    grid = np.array(devices).reshape(tuple(shape.values()))
    return Mesh(grid, AXES, axis_types=(kind,) * len(AXES))
