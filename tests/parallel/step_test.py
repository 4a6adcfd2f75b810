"""A training step of each multimodal system over eight devices equals that on one, with no collectives but these."""

import collections
import dataclasses
import re

import jax
import numpy as np
import pytest
import tiny_systems

from mmjax.checkpoint.paths import flatten
from mmjax.layers import BlockConfig
from mmjax.models import build
from mmjax.parallel import batch_sharding, make_mesh, param_shardings, put_rows
from mmjax.training import step as step_lib
from mmjax.training.config import OptimizerConfig, StageConfig

ROWS = {"flamingo": [["titttt", "ttt"], ["ttittt"]] * 4, "kosmos1": [["tit", "ttt"], ["titt"]] * 4}
LAYOUTS = {
    "fsdp": {"fsdp": 8},
    "tensor": {"model": 8},
    "fsdp x tensor": {"fsdp": 4, "model": 2},
    "data x sequence": {"data": 2, "seq": 4},
    "explicit axes": {"fsdp": 2, "model": 2, "seq": 2},
}
# Kinds of collectives in a compiled step (loss and gradients) and at most how many instructions of each: what jax
# 0.10.2 makes and a fifth more. Weights are gathered and gradients summed (fsdp; XLA for CPU has no reduce-scatter),
# activations summed over heads and mlp and gathered from the vocabulary (tensor), keys sent round a ring (sequence).
COLLECTIVES = {
    "fsdp": {"all-gather": 71, "all-reduce": 11},
    "tensor": {"all-gather": 5, "all-reduce": 36},
    "fsdp x tensor": {"all-gather": 83, "all-reduce": 43, "collective-permute": 3},
    "data x sequence": {"all-gather": 11, "all-reduce": 16, "all-to-all": 5, "collective-permute": 54},
}
COPIES = "Involuntary full rematerialization"       # XLA's warning that it copies a whole array to every device
COLLECTIVE = re.compile(r"\s(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast|"
                        r"ragged-all-to-all)(?:-start)?\(")


def small(system):
    """Two layers of everything, and eight heads to split."""
    vision = dataclasses.replace(tiny_systems.VISION, num_layers=2, block=BlockConfig(16, 8, 40))
    if system == "kosmos1":
        block = dataclasses.replace(tiny_systems.MAGNETO.block, num_heads=8)
        lm = dataclasses.replace(tiny_systems.MAGNETO, block=block)
        connector = dataclasses.replace(tiny_systems.CONNECTOR, num_heads=8)
        return tiny_systems.config(system, vision=vision, lm=lm, connector=connector)
    block = dataclasses.replace(tiny_systems.LLAMA.block, num_heads=8, num_kv_heads=8)
    lm = dataclasses.replace(tiny_systems.LLAMA, num_layers=2, block=block)
    return tiny_systems.config(system, vision=vision, lm=lm, xattn_every=1,
                               resampler=dataclasses.replace(tiny_systems.RESAMPLER, num_heads=8),
                               xattn=dataclasses.replace(tiny_systems.XATTN, num_heads=8))


@pytest.fixture(scope="module", params=ROWS)
def one_device(request):
    """A system, its parameters and a batch of eight rows, with loss and gradients of one device."""
    system = request.param
    model = build(system, small(system))
    params = jax.tree.map(np.asarray, tiny_systems.random_params(model))
    batch = tiny_systems.make_batch(system, ROWS[system], num_tokens=12, num_images=1)
    step = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
    (loss, _), gradient = step(params, batch)
    return model, params, batch, loss, gradient


@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_over_eight_devices_equals_one(one_device, layout, capfd):
    model, params, batch, want_loss, want_gradient = one_device
    sizes = LAYOUTS[layout]
    mesh = make_mesh(sizes, explicit=layout not in COLLECTIVES)
    placed = jax.device_put(params, param_shardings(model.axes, params, mesh))
    rows = jax.device_put(batch, batch_sharding(mesh))
    assert_split(placed, rows, sizes)
    step = jax.value_and_grad(model.loss, has_aux=True)
    with jax.set_mesh(mesh):
        step = jax.jit(step, out_shardings=(None, jax.tree.map(lambda x: x.sharding, placed)))
        compiled = step.lower(placed, rows).compile()
        (loss, _), gradient = compiled(placed, rows)
    assert abs(loss - want_loss) <= 1e-5 * want_loss
    jax.tree.map_with_path(assert_close, gradient, want_gradient)
    found = collections.Counter(COLLECTIVE.findall(compiled.as_text()))
    if layout in COLLECTIVES:
        assert COPIES not in capfd.readouterr().err
        assert not found - collections.Counter(COLLECTIVES[layout])
        # Weights are gathered layer by layer: the stack [2, 32, 64] of the language model never is.
        gathered = re.findall(r"f32\[((?:\d,)?32,64)\]\S* all-gather", compiled.as_text())
        assert "2,32,64" not in gathered and (gathered or layout != "fsdp")


def test_rows_in_four_parts_one_after_the_other_equal_all_at_once(one_device):
    """Two data sets per update; the parts have different numbers of tokens."""
    model, params, batch, want_loss, want_gradient = one_device
    optimizer = OptimizerConfig(b1=0.0, clip_norm=None)         # its first moment is the gradient
    config = StageConfig("", model.config, None, 10, optimizer, mesh={"data": 2}, accumulate=4)
    mesh = make_mesh(config.mesh, jax.devices()[:2])
    with jax.set_mesh(mesh):
        plan = step_lib.make_plan(model, config, mesh)
        state = step_lib.init_state(model, plan, jax.random.key(0), {"": jax.tree.map(lambda x: x.copy(), params)})
        batches = dict.fromkeys(("a", "b"), jax.tree.map(lambda x: put_rows(x, mesh), batch))
        step = step_lib.make_train_step(model, plan, {"a": 1.0, "b": 0.25})
        state, metrics = step(state, batches, jax.random.key(0))
    for name, want in {"loss": 1.25 * want_loss, "loss/b": want_loss, "tokens/a": batch.loss_weights.sum()}.items():
        np.testing.assert_allclose(metrics[name], want, rtol=1e-5)
    moments = {p.split("/mu/")[1]: x for p, x in flatten(state.opt_state).items() if "/mu/" in p}
    for path, want in flatten(want_gradient).items():
        assert_close(path, moments[path], 1.25 * want)


def assert_split(params, batch, sizes):
    """Every large parameter lies in pieces, and each device has its own rows."""
    parts = sizes.get("fsdp", 1) * sizes.get("model", 1)
    kernel = params["lm"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / parts
    rows = 8 // sizes.get("fsdp", 1) // sizes.get("data", 1)
    assert all(leaf.addressable_shards[0].data.shape[0] == rows for leaf in batch)


def assert_close(path, got, want):
    scale = float(np.abs(want).max())
    path = path if isinstance(path, str) else jax.tree_util.keystr(path)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(scale, 1e-3), err_msg=path)
