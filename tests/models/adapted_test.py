import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_systems

from mmjax.checkpoint.paths import flatten, nest
from mmjax.layers.low_rank import LowRank, add_adapters, is_adapter, merge_adapters
from mmjax.models import build
from mmjax.parallel import make_mesh
from mmjax.training import optimizer
from mmjax.training.config import ConfigError, GroupConfig, OptimizerConfig, StageConfig
from mmjax.training.step import init_state, make_plan, make_train_step

ADAPTER = LowRank(rank=2, alpha=6.0)


def choose(path):
    return ADAPTER if path.endswith("/kernel") and "lm/blocks" in path else None


@functools.cache
def model_and_params(system):
    model = build(system, tiny_systems.config(system), choose)
    return model, tiny_systems.random_params(model)


def batch(system):
    return tiny_systems.make_batch(system, [["itt", "tttt"], ["titt"]], 20, 2)


@pytest.mark.parametrize("system", ["kosmos1", "language"])
def test_adapters_compute_what_merged_kernels_do(system):
    model, params = model_and_params(system)
    plain = build(system, model.config)
    merged = merge_adapters(params, model.axes, choose)
    assert jax.tree.structure(merged) == jax.tree.structure(jax.eval_shape(plain.init, jax.random.key(0)))
    bare = nest({path: x for path, x in flatten(params).items() if not is_adapter(path)})
    run = jax.jit(plain.logits)
    rows = batch(system)
    got, want, without = jax.jit(model.logits)(params, rows), run(merged, rows), run(bare, rows)
    size = float(jnp.abs(want).max())
    np.testing.assert_allclose(got, want, atol=1e-5 * size)
    assert jnp.abs(got - without).max() > 0.1 * size


@pytest.mark.quick
def test_shapes_and_first_values_of_adapters():
    model, _ = model_and_params("language")
    plain = tiny_systems.random_params(model.model)
    flat = flatten(add_adapters(plain, model.model.axes, choose, jax.random.key(0)))
    axes = model.axes["lm"]["blocks"]["attention"]["out"]
    assert axes["lora_a"] == ("layers", "heads", "head_dim", "rank") and axes["lora_b"] == ("layers", "rank", "embed")
    modules = {path.rpartition("/")[0] for path in flat if is_adapter(path)}
    assert len(modules) == 7 and all(name.startswith("lm/blocks/") for name in modules)     # q k v out, gate up down
    for name in modules:
        kernel, a, b = (flat[f"{name}/{leaf}"] for leaf in ("kernel", "lora_a", "lora_b"))
        assert (a.shape[0], a.shape[-1]) == b.shape[:2] == (kernel.shape[0], ADAPTER.rank)
        assert (*a.shape[1:-1], *b.shape[2:]) == kernel.shape[1:]
        assert not b.any() and 0 < np.abs(a).max() <= np.prod(a.shape[1:-1]) ** -0.5


def stage(**fields):
    rules = ((".*attention/(q|v)/kernel", "lora"), ("lm/final_norm/.*", "main"), (".*", "frozen"))
    groups = {"main": GroupConfig(), "lora": GroupConfig(lora_rank=2)}
    fields = dict(rules=rules, groups=groups) | fields
    return StageConfig("language", tiny_systems.config("language"), None, 10, **fields)


def test_only_adapters_of_the_rule_train():
    config = stage()
    model = build("language", config.model, config.low_rank)
    mesh = make_mesh({"fsdp": 8})
    with jax.set_mesh(mesh):
        plan = make_plan(model, config, mesh)
        before = init_state(model, plan, jax.random.key(0))
        trained = set(flatten(before.trainable))
        assert trained == {f"lm/blocks/attention/{m}/{x}" for m in "qv" for x in ("lora_a", "lora_b")} | {
            "lm/final_norm/scale"}
        assert plan.labels["lm/blocks/attention/q/kernel"] == "frozen"
        kept = jax.tree.map(np.asarray, before.frozen)
        rows = tiny_systems.make_batch("language", [["ttt"]] * 8, 8, 0)
        state, metrics = make_train_step(model, plan, {})(before, {"text": rows}, jax.random.key(1))
    assert metrics["grad_norm"] > 0 and np.any(flatten(state.trainable)["lm/blocks/attention/q/lora_b"])
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, state.frozen))


@pytest.mark.quick
def test_rules_for_adapters_that_match_no_kernel_are_refused():
    config = stage(rules=(("lm/final_norm/.*", "lora"), (".*", "main")))
    model = build("language", config.model, config.low_rank)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="group 'lora' has lora_rank=2, but its rules match no kernel, only 'lm/f"):
        optimizer.resolve_rules(shapes, config.rules, config.groups)
    with pytest.raises(ConfigError, match="lora_alpha=4.0 must be positive, and belongs to a lora_rank above 0"):
        GroupConfig(lora_alpha=4.0)


@pytest.mark.quick
def test_a_group_may_bound_its_parameters():
    params = {"scale": jnp.array([4.0, 1.0]), "other": jnp.array([4.0])}
    labels = {"scale": "bounded", "other": "main"}
    groups = {"bounded": GroupConfig(max_value=4.05), "main": GroupConfig()}
    tx = optimizer.make_optimizer(OptimizerConfig(lr=0.1), groups, labels, 10)
    gradients = jax.tree.map(lambda x: -jnp.ones_like(x), params)
    updates, _ = tx.update(gradients, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["scale"], [4.05, 1.1], rtol=1e-6)
    np.testing.assert_allclose(after["other"], [4.1], rtol=1e-6)


@pytest.mark.quick
def test_an_output_head_takes_no_adapter():
    """The loss reads its kernel itself; an adapter would never learn."""
    config = tiny_systems.config("language", lm=tiny_systems.GPT)
    model = build("language", config, lambda path: ADAPTER if path == "lm/head/kernel" else None)
    with pytest.raises(ValueError, match="lm/head/kernel has the dimensions embed, vocab: low-rank adapters are for"):
        jax.eval_shape(model.init, jax.random.key(0))
