"""The language model alone."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_systems

from mmjax.layers import MoeConfig
from mmjax.models import build
from mmjax.parallel import make_mesh, param_shardings


@pytest.mark.quick
def test_it_has_no_image_features():
    model = build("language", tiny_systems.config("language"))
    with pytest.raises(ValueError, match="system 'language' has no vision tower; choose examples at random"):
        model.image_features({}, None)


@pytest.fixture(scope="module")
def experts():
    """A model whose every layer has experts, a step of it, and the step's result on one device."""
    block = dataclasses.replace(tiny_systems.LLAMA.block, moe=MoeConfig(4, capacity_factor=1.0, z_weight=0.1))
    lm = dataclasses.replace(tiny_systems.LLAMA, num_layers=2, block=block)
    model = build("language", tiny_systems.config("language", lm=lm))
    params = tiny_systems.random_params(model)
    batch = tiny_systems.make_batch("language", [["tttt", "ttt"], ["tttttttt"]], 8, 0)
    step = jax.value_and_grad(model.loss, has_aux=True)
    return model, step, params, batch, jax.device_get(jax.jit(step)(params, batch))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_experts_learn_alike_on_one_device_and_on_eight(experts, explicit):
    """Loss, metrics and gradients through the scan, with rows, width and experts split."""
    model, step, params, batch, ((want, metrics), grads) = experts
    assert metrics["dropped"] > 0
    mesh = make_mesh({"data": 2, "model": 2, "expert": 2}, explicit=explicit)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(model.axes, params, mesh))
        (loss, split_metrics), split_grads = jax.device_get(jax.jit(step)(placed, batch))
    assert loss == pytest.approx(float(want), rel=1e-5)
    for name, value in metrics.items():
        assert split_metrics[name] == pytest.approx(float(value), rel=1e-4), name
    for a, b in zip(jax.tree.leaves(split_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))
