"""Rules, schedules and updates, against a NumPy AdamW that follows the paper's algorithm 2."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.checkpoint.paths import flatten
from mmjax.training import optimizer
from mmjax.training.config import GroupConfig, OptimizerConfig
from mmjax.training.structure import ConfigError

pytestmark = pytest.mark.quick

SHAPES = {"lm": {"embed": np.zeros((4, 2)), "block": {"w": np.zeros((2, 2)), "bias": np.zeros(2)}},
          "vision": {"w": np.zeros((3, 2))}}


def test_first_matching_rule_decides():
    labels = optimizer.resolve_rules(SHAPES, ((".*/bias", "plain"), ("lm/.*", "frozen"), (".*", "main")))
    assert labels == {"lm/block/bias": "plain", "lm/block/w": "frozen", "lm/embed": "frozen", "vision/w": "main"}


@pytest.mark.parametrize("rules, message", [
    ((("lm", "main"), (".*", "main")), r"\('lm', 'main'\) decides about no parameter: none of the 4 paths .*'lm/b"),
    (((".*", "main"), ("lm/.*", "frozen")), r"the 3 it matches, such as 'lm/block/bias', are decided by earlier rules"),
    ((("lm/.*", "main"),), r"1 of 4 parameters have no rule: 'vision/w'; add a last rule"),
    (((".*", "frozen"),), r"leave all 4 parameters frozen"),
])
def test_each_wrong_table_of_rules_is_named(rules, message):
    with pytest.raises(ConfigError, match=message):
        optimizer.resolve_rules(SHAPES, rules)


def test_partition_and_merge_are_inverse():
    labels = optimizer.resolve_rules(SHAPES, (("lm/block/w|vision/.*", "main"), (".*", "frozen")))
    trainable, frozen = optimizer.partition(SHAPES, labels)
    assert list(flatten(trainable)) == ["lm/block/w", "vision/w"]
    assert "vision" not in frozen
    merged = optimizer.merge(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(SHAPES)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(SHAPES), strict=True))


@pytest.mark.parametrize("schedule, want", [
    ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("linear", [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]),
    ("cosine", [0.5, 1.0] + [0.2 + 0.4 * (1 + np.cos(np.pi * i / 4)) for i in (1, 2, 3, 4)]),
])
def test_schedule_reaches_peak_and_end_exactly(schedule, want):
    config = OptimizerConfig(lr=1.0, end_lr=0.0 if schedule == "constant" else 0.2, warmup_steps=2, schedule=schedule)
    got = [float(optimizer.make_schedule(config, 6)(n)) for n in range(6)]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert float(optimizer.make_schedule(OptimizerConfig(lr=1.0), 6)(0)) == 1.0


def adamw(config, params, gradients, mults, decays):
    """Decoupled weight decay (arXiv:1711.05101) in float64, with one clip over all arrays."""
    params = {k: v.astype(np.float64) for k, v in params.items()}
    m, v = ({k: np.zeros_like(x) for k, x in params.items()} for _ in range(2))
    for n, grads in enumerate(gradients, start=1):
        norm = np.sqrt(sum((g.astype(np.float64)**2).sum() for g in grads.values()))
        lr = config.lr * min(n / config.warmup_steps, 1.0)
        for k in params:
            g = grads[k] * min(1.0, config.clip_norm / norm)
            m[k] = config.b1 * m[k] + (1 - config.b1) * g
            v[k] = config.b2 * v[k] + (1 - config.b2) * g**2
            step = m[k] / (1 - config.b1**n) / (np.sqrt(v[k] / (1 - config.b2**n)) + config.eps)
            params[k] -= lr * mults[k] * (step + decays[k] * params[k])
    return params


def test_updates_match_numpy_adamw_with_groups_and_clipping():
    config = OptimizerConfig(lr=1e-2, warmup_steps=3, b1=0.8, b2=0.9, weight_decay=0.1, clip_norm=1.0)
    groups = {"main": GroupConfig(), "slow": GroupConfig(lr_mult=0.1, weight_decay=0.0)}
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in (("a", (3, 2)), ("b", (2,)))}
    gradients = [{k: rng.normal(size=x.shape).astype(np.float32) * scale for k, x in params.items()}
                 for scale in (0.05, 5.0, 0.5, 2.0, 0.1)]         # some are clipped, some are not
    labels = optimizer.resolve_rules(params, (("b", "slow"), ("a", "main")))
    tx = optimizer.make_optimizer(config, groups, labels, total_steps=5)
    update = jax.jit(tx.update)
    got, state = jax.tree.map(jnp.asarray, params), tx.init(params)
    for grads in gradients:
        updates, state = update(grads, state, got)
        got = optax.apply_updates(got, updates)
    want = adamw(config, params, gradients, {"a": 1.0, "b": 0.1}, {"a": 0.1, "b": 0.0})
    for k in params:
        np.testing.assert_allclose(got[k], want[k], rtol=2e-6, atol=1e-7)
        assert np.abs(want[k] - params[k]).max() > 1e-3


def test_lion_moves_by_the_sign_of_the_gradient():
    params = {"a": jnp.array([1.0, -2.0])}
    tx = optimizer.make_optimizer(OptimizerConfig(name="lion", lr=0.1, weight_decay=0.5, clip_norm=None),
                                  {"main": GroupConfig()}, {"a": "main"}, 1)
    updates, _ = tx.update({"a": jnp.array([3.0, -4.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1 * (np.sign([3.0, -4.0]) + 0.5 * np.array([1.0, -2.0])), rtol=1e-6)


def test_table_lists_every_parameter_and_the_totals():
    labels = optimizer.resolve_rules(SHAPES, (("vision/.*", "main"), (".*", "frozen")))
    table = optimizer.param_table(SHAPES, labels)
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if "/" in line}
    assert rows["vision/w"] == ["3x2", "float64", "-", "main", "yes"]
    assert rows["lm/block/bias"] == ["2", "float64", "-", "frozen", "no"]
    assert table.endswith("20 parameters, 6 trainable (frozen 14, main 6)")
