"""Mesh shapes and their mistakes."""

from types import SimpleNamespace

import jax
import pytest

from mmjax.parallel import AXES, check_dcn, make_mesh, mesh_shape
from mmjax.parallel.mesh import device_grid

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("sizes, want", [
    ({"fsdp": 8}, {"fsdp": 8}),
    ({"fsdp": -1}, {"fsdp": 8}),
    ({"fsdp": -1, "model": 2}, {"fsdp": 4, "model": 2}),
    ({"data": 2, "model": 2, "fsdp": 2}, {"data": 2, "fsdp": 2, "model": 2}),
    ({"data": -1, "seq": 8}, {"seq": 8}),
])
def test_absent_axes_have_size_1_and_one_may_take_the_rest(sizes, want):
    assert mesh_shape(sizes, 8) == dict.fromkeys(AXES, 1) | want


@pytest.mark.parametrize("sizes, message", [
    ({"fdsp": 2}, "unknown mesh axis 'fdsp'; the axes are data, fsdp, model, expert, seq"),
    ({"fsdp": 16}, "mesh fsdp=16 needs 16 devices but 8 are visible; change the mesh"),
    ({"fsdp": 4}, "mesh fsdp=4 needs 4 devices but 8 are visible"),
    ({}, "mesh data=1 needs 1 devices but 8 are visible"),
    ({"fsdp": 3, "data": -1}, "mesh data=2 x fsdp=3 needs 6 devices but 8 are visible"),
    ({"fsdp": 9, "data": -1}, "mesh fsdp=9 needs 9 devices but 8 are visible"),
    ({"fsdp": 0}, r"mesh sizes {'fsdp': 0} must be positive"),
    ({"fsdp": -2}, r"mesh sizes {'fsdp': -2} must be positive"),
    ({"fsdp": -1, "data": -1}, "with at most one -1"),
])
def test_mistakes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        mesh_shape(sizes, 8)


@pytest.mark.parametrize("explicit, kind", [(False, "Auto"), (True, "Explicit")])
def test_mesh_lays_all_devices_over_named_axes(explicit, kind):
    mesh = make_mesh({"fsdp": 4, "model": 2}, explicit=explicit)
    assert mesh.axis_names == AXES and dict(mesh.shape) == mesh_shape({"fsdp": 4, "model": 2}, 8)
    assert list(mesh.devices.flat) == jax.devices()
    assert [axis.name for axis in mesh.axis_types] == [kind] * 5


def test_mesh_over_given_devices():
    assert list(make_mesh({"data": 2}, jax.devices()[2:4]).devices.flat) == jax.devices()[2:4]


@pytest.mark.parametrize("kind", ["slice_index", "process_index"])
def test_only_the_axes_of_dcn_leave_a_slice(kind):
    """Sixteen devices in four slices, listed in a mixed order."""
    place = dict(platform="cpu", device_kind="cpu", slice_index=0, process_index=0)
    devices = [SimpleNamespace(**place | {"id": i, kind: i % 4}) for i in range(16)]
    shape = mesh_shape({"data": 4, "fsdp": 2, "model": 2}, 16)
    grid = device_grid(shape, {"data": 2, "fsdp": 2}, devices)
    assert grid.shape == tuple(shape.values()) and len({d.id for d in grid.flat}) == 16
    of_slice = [[getattr(d, kind) for d in grid[i, j].flat] for i in range(4) for j in range(2)]
    assert of_slice == [[0, 0], [1, 1], [0, 0], [1, 1], [2, 2], [3, 3], [2, 2], [3, 3]]


@pytest.mark.parametrize("dcn, message", [
    ({"dta": 2}, "dcn: unknown mesh axis 'dta'"),
    ({"data": 3}, "dcn.data=3 must be positive and divide mesh.data=4: 1, 2, 4"),
    ({"model": 2}, "dcn.model=2 must be positive and divide mesh.model=1: 1"),
    ({"data": 0}, "dcn.data=0 must be positive"),
])
def test_mistakes_of_dcn_are_named(dcn, message):
    with pytest.raises(ValueError, match=message):
        check_dcn({"data": 4, "fsdp": 2}, dcn)
    check_dcn({"data": -1}, {"data": 4})


def test_slices_that_are_not_there_are_counted():
    with pytest.raises(ValueError, match="dcn={'data': 2} asks for 2 slices, but the 8 devices form 1"):
        make_mesh({"data": 8}, dcn={"data": 2})
