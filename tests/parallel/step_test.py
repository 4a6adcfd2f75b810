"""A training step of each multimodal system over eight devices equals that on one."""

import jax
import numpy as np
import pytest
import tiny_systems

from mmjax.models import build
from mmjax.parallel import batch_sharding, make_mesh, param_shardings

ROWS = {"flamingo": [["titttt", "ttt"], ["ttittt"]] * 4, "kosmos1": [["tit", "ttt"], ["titt"]] * 4}
FSDP, TENSOR, THREE = {"fsdp": 8}, {"fsdp": 4, "model": 2}, {"data": 2, "fsdp": 2, "model": 2}
COPIES = "Involuntary full rematerialization"       # XLA's warning that it copies a whole array to every device


@pytest.fixture(scope="module", params=ROWS)
def one_device(request):
    """A system, its parameters and a batch of eight rows, with loss and gradients of one device."""
    model = build(request.param, tiny_systems.config(request.param, vision=tiny_systems.VISION))
    params = tiny_systems.random_params(model)
    batch = tiny_systems.make_batch(request.param, ROWS[request.param], num_tokens=12, num_images=1)
    (loss, _), gradient = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(params, batch)
    return model, params, batch, loss, gradient


@pytest.mark.parametrize("sizes", [FSDP, TENSOR], ids=["fsdp", "fsdp x tensor"])
def test_step_over_eight_devices_equals_one(one_device, sizes, capfd):
    model, params, batch, want_loss, want_gradient = one_device
    mesh, placed, rows = place(model, params, batch, sizes)
    shardings = jax.tree.map(lambda x: x.sharding, placed)
    step = jax.jit(jax.value_and_grad(model.loss, has_aux=True), out_shardings=(None, shardings))
    with jax.set_mesh(mesh):
        (loss, _), gradient = step(placed, rows)
    assert abs(loss - want_loss) <= 1e-5 * want_loss
    jax.tree.map_with_path(assert_close, gradient, want_gradient)
    assert COPIES not in capfd.readouterr().err


def test_three_axes_together(one_device, capfd):
    model, params, batch, want_loss, _ = one_device
    mesh, placed, rows = place(model, params, batch, THREE)
    with jax.set_mesh(mesh):
        loss, _ = jax.jit(model.loss)(placed, rows)
    assert abs(loss - want_loss) <= 1e-5 * want_loss
    assert COPIES not in capfd.readouterr().err


def place(model, params, batch, sizes):
    mesh = make_mesh(sizes)
    placed = jax.device_put(params, param_shardings(model.axes, params, mesh))
    rows = jax.device_put(batch, batch_sharding(mesh))
    assert_split(placed, rows, sizes)
    return mesh, placed, rows


def assert_split(params, batch, sizes):
    """Every large parameter lies in pieces, and each device has its own rows."""
    for path, leaf in jax.tree.leaves_with_path(params):
        piece = leaf.addressable_shards[0].data.size
        if leaf.size > 1000:
            assert piece <= leaf.size / sizes["fsdp"], jax.tree_util.keystr(path)
    rows = 8 // sizes["fsdp"] // sizes.get("data", 1)
    assert all(leaf.addressable_shards[0].data.shape[0] == rows for leaf in batch)
    kernel = params["lm"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / sizes["fsdp"] / sizes.get("model", 1)


def assert_close(path, got, want):
    scale = float(np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(scale, 1e-3), err_msg=jax.tree_util.keystr(path))
