"""Variants of a stage by estimate: legal, small enough, and the state's bytes exact."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.models import build
from mmjax.models.language import LanguageConfig
from mmjax.parallel import AXES, make_mesh
from mmjax.parallel.chips import CHIPS
from mmjax.parts.flops import Cost
from mmjax.plan import memory, search
from mmjax.plan.machine import Machine
from mmjax.training.config import StageConfig
from mmjax.training.step import make_plan
from tests import tiny_systems

COSTS = {"lm": Cost(1e9, 2e9, 1e8, 2e8)}


def stage(**fields) -> StageConfig:
    sets = {"text": DataSetConfig((Source("data/text"),), batch_size=8, seq_len=64)}
    return StageConfig("language", LanguageConfig(tiny_systems.LLAMA), LoaderConfig(sets), total_steps=2, **fields)


def machine(memory_bytes: float) -> Machine:
    devices = jax.devices()
    return Machine("cpu:8", CHIPS["v5e"]._replace(memory=memory_bytes), devices, (8,))


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(data=2, fsdp=2, model=2), dict(data=8)])
def test_bytes_of_the_state_are_those_that_the_devices_hold(sizes):
    config = stage(rules=((".*/token_embed/.*", "frozen"), (".*", "main")))
    mesh = make_mesh(sizes)
    template = make_plan(build("language", config.model), config, mesh).template
    groups = memory.of_state(template, {}, dict(mesh.shape))

    def held(tree):
        return sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    assert (groups["trainable"], groups["frozen"]) == (held(template.trainable), held(template.frozen))
    assert groups["optimizer"] == held(template.opt_state) and groups["gradients"] == groups["trainable"]


def test_every_mesh_has_all_the_devices_once():
    found = [tuple(m[axis] for axis in search.SEARCHED) for m in search.meshes(8)]
    assert len(set(found)) == len(found) == 20 and all(np.prod(sizes) == 8 for sizes in found)
    assert all(set(m) == set(AXES) for m in search.meshes(8))


def test_variants_are_legal_and_fit():
    config = stage()
    finder = search.Search(config, machine(64 * 2**20), COSTS)
    best = finder.best(100)
    assert best and best == sorted(best, key=lambda c: c.seconds / c.rows)
    for candidate in best:
        mesh = make_mesh(candidate.mesh)
        make_plan(build("language", candidate.config.model), candidate.config, mesh)        # raises if it divides not
        rows = candidate.config.data.sets["text"].batch_size
        assert rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 and candidate.needed <= 0.9 * 64 * 2**20


def test_the_nearest_mesh_is_the_one_with_the_fewest_doublings():
    roomy = search.Search(stage(), machine(2**40), COSTS)
    assert {a: n for a, n in roomy.nearest({"data": 8}).mesh.items() if n > 1} == {"data": 8}
    needs = {f: memory.of_state(roomy._plan.template, {}, dict.fromkeys(AXES, 1) | {"data": 8 // f, "fsdp": f})
             for f in (1, 2, 4)}
    work = memory.of_activations(stage(), dict.fromkeys(AXES, 1) | {"data": 8})
    work += memory.of_workspace(stage(), roomy._plan.template, dict.fromkeys(AXES, 1) | {"data": 4, "fsdp": 2})
    limit = (sum(needs[2].values()) + work) / search.FILL + 1
    tight = search.Search(stage(), machine(limit), COSTS)
    near = tight.nearest({"data": 8}).mesh
    assert sum(abs(np.log2(near[a] / {"data": 8}.get(a, 1))) for a in search.SEARCHED) == 2 and near["data"] == 4
    assert search.Search(stage(), machine(1000), COSTS).nearest({"data": 8}) is None


def test_rows_in_parts_save_what_no_mesh_does():
    config, sizes = stage(), dict.fromkeys(AXES, 1) | {"data": 8}
    config = dataclasses.replace(config, data=search.with_rows(config, 1024).data)
    template = search.Search(config, machine(1), COSTS)._plan.template
    state = sum(memory.of_state(template, {}, sizes).values())
    parts = dataclasses.replace(config, accumulate=2)
    limit = (state + memory.of_workspace(parts, template, sizes) + memory.of_activations(config, sizes) / 3
             ) / search.FILL
    near = search.Search(config, machine(limit), COSTS).nearest(sizes)
    assert near.config.accumulate in (2, 4) and near.needed <= search.FILL * limit


def test_less_is_kept_under_more_recomputation():
    sizes = dict.fromkeys(AXES, 1)
    full, dots, none = (memory.of_activations(search.with_remat(stage(), r), sizes) for r in search.REMAT)
    assert full < dots < none
    assert memory.of_activations(stage(), sizes | {"data": 8}) == full / 8


def test_the_output_matrix_and_sums_of_gradients_take_room_however_few_the_rows():
    config, sizes = stage(), dict.fromkeys(AXES, 1) | {"data": 8}
    template = search.Search(config, machine(1), COSTS)._plan.template
    lm, tokens = config.model.lm, 64
    want = 12 * tokens * lm.vocab_size + 8 * lm.vocab_size * lm.block.embed_dim         # float32 factors and gradient
    assert memory.of_workspace(config, template, sizes) == want
    parts = memory.of_workspace(dataclasses.replace(config, accumulate=2), template, sizes)
    assert parts == want - 12 * tokens / 2 * lm.vocab_size + memory.of_arrays(template.trainable, sizes)


def test_a_replicated_tower_is_neither_split_nor_sent():
    data = DataSetConfig((Source("data/pages"),), batch_size=8, seq_len=64, images_per_row=2)
    config = StageConfig("kosmos1", tiny_systems.config("kosmos1"), LoaderConfig({"pages": data}), total_steps=2)
    whole = dataclasses.replace(config, sharding={"vision": "replicated"})
    sizes = dict.fromkeys(AXES, 1) | {"fsdp": 4, "model": 2}
    assert memory.of_activations(whole, sizes) > memory.of_activations(config, sizes)
    split, apart = (search.Search(c, machine(2**40), COSTS)._plan.template.trainable for c in (config, whole))
    (sent, kept), (less, more) = (search._over_fsdp(tree, sizes) for tree in (split, apart))
    vision = memory.of_arrays(apart["vision"], sizes)
    assert less < sent and more > kept and search._over_fsdp(apart["vision"], sizes) == (0, vision)


def test_variants_keep_the_parts_over_the_slow_network():
    best = search.Search(stage(dcn={"data": 4}), machine(2**40), COSTS).best(100)
    assert best and all(candidate.mesh["data"] % 4 == 0 for candidate in best)


def test_rows_are_whole():
    assert search.with_rows(stage(), 0.25).data.sets["text"].batch_size == 2
    config = dataclasses.replace(stage(), data=search.with_rows(stage(), 0.125).data)
    assert search.with_rows(config, 0.5) is None
