"""A training step of each multimodal system over eight devices equals that on one."""

import jax
import numpy as np
import pytest
import tiny_systems

from mmjax.models import build
from mmjax.parallel import batch_sharding, make_mesh, param_shardings

ROWS = {"flamingo": [["titttt", "ttt"], ["ttittt"]] * 4, "kosmos1": [["tit", "ttt"], ["titt"]] * 4}
MESHES = {"fsdp": {"fsdp": 8}, "fsdp x tensor": {"fsdp": 4, "model": 2}}


@pytest.fixture(scope="module", params=ROWS)
def one_device(request):
    """A system, its parameters and a batch of eight rows, with loss and gradients of one device."""
    model = build(request.param, tiny_systems.config(request.param))
    params = tiny_systems.random_params(model)
    batch = tiny_systems.make_batch(request.param, ROWS[request.param], num_tokens=12, num_images=1)
    (loss, _), gradient = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(params, batch)
    return model, params, batch, loss, gradient


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_step_over_eight_devices_equals_one(one_device, sizes, capfd):
    model, params, batch, want_loss, want_gradient = one_device
    mesh = make_mesh(sizes)
    shardings = param_shardings(model.axes, params, mesh)
    placed = jax.device_put(params, shardings)
    rows = jax.device_put(batch, batch_sharding(mesh))
    assert_split(placed, rows, sizes)
    step = jax.jit(jax.value_and_grad(model.loss, has_aux=True), out_shardings=(None, shardings))
    with jax.set_mesh(mesh):
        (loss, _), gradient = step(placed, rows)
    assert abs(loss - want_loss) <= 1e-5 * want_loss
    jax.tree.map_with_path(assert_close, gradient, want_gradient)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def assert_split(params, batch, sizes):
    """Every parameter that is large lies in pieces, and each device has its own rows."""
    for path, leaf in jax.tree.leaves_with_path(params):
        piece = leaf.addressable_shards[0].data.size
        if leaf.size > 1000:
            assert piece <= leaf.size / sizes["fsdp"], jax.tree_util.keystr(path)
    rows = 8 // sizes["fsdp"]
    assert all(leaf.addressable_shards[0].data.shape[0] == rows for leaf in batch)
    kernel = params["lm"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / 8


def assert_close(path, got, want):
    scale = float(np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(scale, 1e-3), err_msg=jax.tree_util.keystr(path))
