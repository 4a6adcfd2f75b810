"""Mesh shapes and their mistakes."""

import jax
import pytest

from mmjax.parallel import AXES, make_mesh, mesh_shape

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
