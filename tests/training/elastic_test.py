"""A checkpoint goes onto any mesh: bits stay, only where they lie changes."""

import jax
import numpy as np
import pytest

from mmjax.checkpoint.manager import CheckpointManager
from mmjax.checkpoint.paths import flatten
from mmjax.parallel import make_mesh, put_rows
from mmjax.training import step as step_lib

ROUTE = {"fsdp 8": dict(mesh={"fsdp": 8}), "fsdp 4 x tensor 2": dict(mesh={"fsdp": 4, "model": 2}),
         "vision replicated": dict(mesh={"fsdp": 2, "model": 4}, sharding={"vision": "replicated"}),
         "one device": dict(mesh={"data": 1})}


@pytest.mark.quick
def test_state_passes_from_mesh_to_mesh(toy, tmp_path):
    model, want, pieces, losses = toy.Model(), None, [], []
    for number, (name, changes) in enumerate(ROUTE.items()):
        stage = toy.stage(**changes)
        mesh = make_mesh(stage.mesh, jax.devices()[:1] if name == "one device" else None)
        plan = step_lib.make_plan(model, stage, mesh)
        with jax.set_mesh(mesh), CheckpointManager(tmp_path) as checkpoints:
            step = step_lib.make_train_step(model, plan, {})
            batches = {"pages": jax.tree.map(lambda x, mesh=mesh: put_rows(x, mesh), toy.batch(0))}
            if number == 0:
                state = step_lib.init_state(model, plan, jax.random.key(0))
                state, _ = step(state, batches, jax.random.key(1))          # moments that are not zero
                want = {path: (x.dtype, np.asarray(x).tobytes()) for path, x in flatten(state).items()}
            else:
                state = checkpoints.restore(plan.template).state
            assert {path: (x.dtype, np.asarray(x).tobytes()) for path, x in flatten(state).items()} == want, name
            assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, plan.template), name
            checkpoints.save(number, state, b"", {})
            checkpoints.wait()
            kernels = state.trainable["vision"]["w"], state.trainable["lm"]["head"]["w"]
            pieces.append([kernel.addressable_shards[0].data.size for kernel in kernels])
            losses.append(float(step(state, batches, jax.random.key(1))[1]["loss"]))
    assert pieces == [[12, 16], [24, 16], [96, 16], [96, 128]]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
