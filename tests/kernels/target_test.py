"""What a program is traced for: the mesh's devices before this process's own."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from mmjax.kernels import target


@pytest.mark.parametrize("kind, name, capability", [
    ("TPU v5", "tpu", None), ("NVIDIA H200", "gpu", "9.0"), ("NVIDIA H100 80GB HBM3", "gpu", "9.0"),
    ("NVIDIA B200", "gpu", "10.0"), ("of next year", "gpu", None),
])
def test_the_devices_of_the_mesh_decide(kind, name, capability):
    mesh = AbstractMesh((4,), ("data",), abstract_device=AbstractDevice(kind, None, name))
    with jax.sharding.use_abstract_mesh(mesh):
        assert (target.platform(), target.compute_capability()) == (name, capability)


def test_without_a_mesh_it_is_this_process():
    assert (target.platform(), target.compute_capability()) == ("cpu", None)
