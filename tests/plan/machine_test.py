"""Topologies by name: what is known, what is not, and how fast a group of devices is joined."""

import importlib.util
import types

import pytest

from mmjax.parallel.chips import CHIPS, chip_of
from mmjax.plan import machine
from mmjax.plan.machine import Machine
from mmjax.training.structure import ConfigError


@pytest.mark.parametrize("text, words", [
    ("v9:4x4", ["'v9:4x4'", "v5p:8x8x16"]), ("v5p", ["a name and sizes"]), ("h1000:8x4", ["did you mean", "h100"]),
    ("v5e:4xx4", ["unknown topology"]), ("cpu:900", ["900 devices", "8", "XLA_FLAGS"]),
])
def test_what_is_not_known_is_refused_with_what_is(text, words):
    with pytest.raises(ConfigError) as error:
        machine.find(text)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("text, extra", [("v5e:4x4", "mmjax[tpu]"), ("h100:8x4", "mmjax[cuda]")])
def test_a_compiler_that_is_not_installed_is_named(text, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install") as error:
        machine.find(text)
    assert extra in str(error.value)


def torus(name: str, *dims: int) -> Machine:
    def device(i):
        coords, rest = [], i
        for size in dims:
            coords.append(rest % size)
            rest //= size
        return types.SimpleNamespace(platform="tpu", coords=coords)

    total = 1
    for size in dims:
        total *= size
    return Machine(name, CHIPS[name], [device(i) for i in range(total)], dims)


@pytest.mark.parametrize("shape, group, links", [
    (("v5p", 4, 4, 8), range(4), 2),                    # once round a side
    (("v5p", 4, 4, 8), range(16), 4),                   # two whole sides
    (("v5p", 4, 4, 8), range(128), 6),
    (("v5p", 4, 4, 8), range(2), 1),                    # a part of one
    (("v5p", 4, 4, 2), range(4), 1),                    # not a full cube: no way round
    (("v5e", 4, 4), range(16), 2),
    (("v5e", 16, 16), range(256), 4),
])
def test_a_ring_uses_the_links_along_its_sides(shape, group, links):
    assert torus(*shape).bandwidth(list(group)) == links * CHIPS[shape[0]].link


def test_gpus_of_several_hosts_share_their_network_cards():
    gpus = [types.SimpleNamespace(platform="gpu")] * 32
    found = Machine("h100:8x4", CHIPS["h100"], gpus, (8, 4))
    nvlink, card = CHIPS["h100"].link, CHIPS["h100"].network
    assert found.bandwidth(range(8)) == nvlink and found.bandwidth(range(32)) == 8 * card
    assert found.bandwidth(range(0, 32, 8)) == card


@pytest.mark.parametrize("platform, sizes, dcn, words", [
    ("tpu", dict(dims=(4, 4), slices=2), {}, ["2 slices", "dcn.data=2"]),
    ("tpu", dict(dims=(4, 4)), {"data": 2}, ["dcn={'data': 2}", "1 slice", "leave it out"]),
    ("gpu", dict(dims=(8, 2)), {"data": 4}, ["4 parts", "2 hosts"]),
    ("tpu", dict(dims=(4, 4), slices=2), {"data": 2}, []), ("tpu", dict(dims=(4, 4)), {"data": 1}, []),
    ("gpu", dict(dims=(8, 2)), {"fsdp": 2}, []), ("gpu", dict(dims=(8, 2)), {}, []), ("cpu", dict(dims=(8,)), {}, []),
])
def test_a_mesh_is_cut_where_the_machine_is(platform, sizes, dcn, words):
    found = Machine("there", CHIPS["v5e"], [types.SimpleNamespace(platform=platform)] * 16, **sizes)
    if not words:
        return machine.check_dcn(found, dcn)
    with pytest.raises(ConfigError) as error:
        machine.check_dcn(found, dcn)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("kind, name", [
    ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v4", "v4"), ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA H200", "h200"), ("TPU7x", "v7x"), ("cpu", None),
])
def test_chips_by_what_jax_calls_them(kind, name):
    assert chip_of(kind) == (CHIPS[name] if name else None)
