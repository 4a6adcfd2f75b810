"""The device mesh: five named axes, unused ones of size 1, made in one place."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
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


def make_mesh(sizes: Mapping[str, int], devices: Sequence | None = None, *, dcn: Mapping[str, int] | None = None,
              explicit: bool = False) -> Mesh:
    """Builds the mesh of a run.

    Args:
        sizes: see `mesh_shape`; `{"fsdp": -1}` shards over all devices.
        devices: the devices to use, `jax.devices()` by default.
        dcn: axis -> how many parts of it lie on different slices, which the slower network joins; what is left of the
            axis stays inside a slice. A slice is a TPU slice, or else what one process has.
        explicit: Explicit axis types, with which JAX checks every sharding at trace time; Auto otherwise.

    Raises:
        ValueError: as `mesh_shape`, or if `dcn` does not fit the mesh or the slices at hand.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(sizes, len(devices))
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return Mesh(device_grid(shape, dcn or {}, devices), AXES, axis_types=(kind,) * len(AXES))


def device_grid(shape: Mapping[str, int], dcn: Mapping[str, int], devices: Sequence) -> np.ndarray:
    """The devices in the order of a complete mesh shape, neighbours near each other; arguments as `make_mesh`."""
    check_dcn(shape, dcn)
    outer = [dcn.get(axis, 1) for axis in AXES]
    inner = [shape[axis] // parts for axis, parts in zip(AXES, outer, strict=True)]
    if math.prod(outer) == 1:
        return _inside(inner, devices)
    kind = "slice_index" if len({getattr(d, "slice_index", 0) for d in devices}) > 1 else "process_index"
    count = len({getattr(d, kind) for d in devices})
    if count != math.prod(outer):
        raise ValueError(f"dcn={dict(dcn)} asks for {math.prod(outer)} slices, but the {len(devices)} devices "
                         f"form {count}")
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, process_is_granule=kind == "process_index",
                                                allow_split_physical_axes=True)


def check_dcn(shape: Mapping[str, int], dcn: Mapping[str, int]) -> None:
    """Checks that the parts over the slow network divide the axes of a mesh (of any size, where it is -1).

    Raises:
        ValueError: naming the axis and sizes that would do.
    """
    for axis, parts in dcn.items():
        if axis not in AXES:
            raise ValueError(f"dcn: unknown mesh axis {axis!r}; the axes are {', '.join(AXES)}")
        size = shape.get(axis, 1)
        if parts < 1 or size > 0 and size % parts:
            legal = [str(n) for n in range(1, size + 1) if size % n == 0]
            raise ValueError(f"dcn.{axis}={parts} must be positive and divide mesh.{axis}={size}: {', '.join(legal)}")


def _inside(shape: Sequence[int], devices: Sequence) -> np.ndarray:
    """One slice. JAX knows how those of TPUs are wired, but not every shape can follow the wires."""
    if devices[0].platform == "tpu":
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (NotImplementedError, ValueError):
            pass
    return np.array(devices).reshape(shape)
