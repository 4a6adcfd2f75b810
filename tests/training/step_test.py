"""One update: what trains, what it is the gradient of, what it leaves alone, and on which devices it lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.checkpoint.paths import flatten
from mmjax.parallel import batch_sharding, make_mesh
from mmjax.training import step as step_lib
from mmjax.training.config import OptimizerConfig
from mmjax.training.structure import ConfigError

KEY = jax.random.key(3)
WEIGHTS = {"pages": 1.0, "text": 0.2}


@pytest.fixture(scope="module")
def prepare(toy):
    """Builds (plan, state, step, batches) of a stage, on its mesh."""
    def build(weights=WEIGHTS, **changes):
        stage = toy.stage(**changes)
        mesh = make_mesh(stage.mesh, jax.devices()[:1] if stage.mesh == {"data": 1} else None)
        plan = step_lib.make_plan(toy.Model(), stage, mesh)
        state = step_lib.init_state(toy.Model(), plan, jax.random.key(0))
        batches = {"pages": toy.batch(0), "text": toy.batch(1, length=4, images=0)}
        step = step_lib.make_train_step(toy.Model(), plan, weights)
        return plan, state, step, jax.device_put(batches, batch_sharding(mesh))
    return build


@pytest.fixture(scope="module")
def standard(prepare):
    return prepare(optimizer=OptimizerConfig(lr=0.1, clip_norm=None))


def copy(state):
    return jax.tree.map(lambda x: x.copy(), state)


def raw(tree):
    return {path: np.asarray(x).tobytes() for path, x in flatten(tree).items()}


@pytest.mark.quick
def test_state_is_made_sharded_and_frozen_parts_are_stored_low(standard):
    plan, state, _, _ = standard
    assert state.frozen["lm"]["embed"].dtype == jnp.bfloat16 and state.trainable["lm"]["head"]["w"].dtype == jnp.float32
    assert state.trainable["lm"]["head"]["w"].sharding.spec == P("fsdp", "model")
    for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(plan.template), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (spec.shape, spec.dtype, spec.sharding)
    moments = {p: x for p, x in flatten(state.opt_state).items() if "/mu/" in p or "/nu/" in p}
    assert sorted(p.split("u/")[1] for p in moments if "/mu/" in p) == ["lm/head/bias", "lm/head/w", "vision/w"]
    assert not any("embed" in p for p in flatten(state.opt_state))
    w = next(x for p, x in moments.items() if p.endswith("mu/lm/head/w"))
    assert w.sharding.spec == P("fsdp", "model") and w.addressable_shards[0].data.shape == (2, 8)


@pytest.mark.quick
def test_gradients_of_all_sets_are_accumulated_into_one_update(standard, toy):
    _, state, step, batches = standard
    before = copy(state)
    after, metrics = step(copy(state), batches, KEY)

    def weighted_sum(trainable, key):
        params = {"lm": {**trainable["lm"], "embed": before.frozen["lm"]["embed"]}, "vision": trainable["vision"]}
        pages, _ = toy.Model().loss(params, batches["pages"], jax.random.fold_in(key, 0))
        text, _ = toy.Model().loss(params, batches["text"], jax.random.fold_in(key, 1))
        return 1.0 * pages + 0.2 * text

    loss, grads = jax.value_and_grad(weighted_sum)(before.trainable, jax.random.fold_in(KEY, 0))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    norm = np.sqrt(sum((np.asarray(g, np.float64)**2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    means = {p.split("/mu/")[1]: x for p, x in flatten(after.opt_state).items() if "/mu/" in p}
    for path, grad in flatten(grads).items():
        np.testing.assert_allclose(means[path] / 0.1, grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["loss/pages"] + 0.2 * metrics["loss/text"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["tokens/text"], batches["text"].loss_weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["lr"], 0.1)


@pytest.mark.quick
def test_updates_lower_the_loss_and_leave_frozen_bits_alone(standard):
    _, state, step, batches = standard
    frozen, losses, state = raw(state.frozen), [], copy(state)
    for _ in range(8):
        state, metrics = step(state, batches, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0] and int(state.step) == 8 and int(state.skipped) == 0
    assert raw(state.frozen) == frozen


@pytest.mark.quick
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_nothing_but_the_counters(standard, value):
    _, state, step, batches = standard
    first, _ = step(copy(state), batches, KEY)
    kept = raw((first.trainable, first.frozen, first.opt_state))
    weights = batches["text"].loss_weights.at[0, 0].set(value)
    bad = batches | {"text": batches["text"]._replace(loss_weights=weights)}
    after, metrics = step(first, bad, KEY)
    assert not np.isfinite(metrics["loss"]) and np.isfinite(metrics["loss/pages"])
    assert raw((after.trainable, after.frozen, after.opt_state)) == kept
    assert (int(after.step), int(after.skipped), int(metrics["skipped"])) == (2, 1, 1)
    after, metrics = step(after, batches, KEY)
    assert np.isfinite(metrics["loss"]) and int(after.skipped) == 1 and raw(after.trainable) != kept


@pytest.mark.quick
def test_each_step_draws_its_own_dropout_and_the_same_when_repeated(standard):
    _, state, step, batches = standard
    losses = [float(step(copy(state)._replace(step=state.step + n), batches, KEY)[1]["loss"]) for n in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_losses_agree_between_one_device_fsdp_and_tensor_parallel(prepare):
    losses = {}
    for sizes in ({"data": 1}, {"fsdp": 8}, {"fsdp": 4, "model": 2}):
        _, state, step, batches = prepare(mesh=sizes)
        for _ in range(3):
            state, metrics = step(state, batches, KEY)
        losses[tuple(sizes)] = float(metrics["loss"])
    np.testing.assert_allclose(list(losses.values()), losses["data",], rtol=1e-5)


def test_given_parts_are_taken_and_the_rest_is_as_without_them(standard, toy):
    plan, state, _, _ = standard
    head = jax.tree.map(lambda leaf: jax.device_put(jnp.full(leaf.shape, 5, leaf.dtype), leaf.sharding),
                        step_lib.subtree(plan.params, "lm/head"))
    got = step_lib.init_state(toy.Model(), plan, jax.random.key(0), {"lm/head": head})
    assert float(got.params["lm"]["head"]["w"].min()) == 5
    assert raw(got.params["vision"]) == raw(state.params["vision"])
    assert raw(got.frozen) == raw(state.frozen)
    everything = step_lib.init_state(toy.Model(), plan, jax.random.key(1), {"": copy(state.params)})
    assert raw(everything.params) == raw(state.params)


@pytest.mark.quick
def test_a_part_the_model_lacks_is_named(standard):
    with pytest.raises(ConfigError, match="'lm/haed', but the model has no such part; known: embed, head; .*'head'"):
        step_lib.subtree(standard[0].params, "lm/haed")


def test_weights_must_name_the_sets(prepare):
    _, state, step, batches = prepare(weights={"page": 1.0, "text": 1.0})
    with pytest.raises(ConfigError, match=r"names the data sets \['page', 'text'\], but .* \['pages', 'text'\]"):
        step(state, batches, KEY)
