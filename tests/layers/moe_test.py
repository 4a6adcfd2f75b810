"""Experts against a loop in NumPy: with and without a capacity, on one device and on eight."""

import functools

import jax
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.layers import MoeConfig, axes_of, init_params, router_losses, unbox
from mmjax.layers.moe import Moe, within_capacity
from mmjax.parallel import make_mesh, param_shardings

B, T, D, F, E = 2, 10, 8, 12, 4
REAL = np.ones((B, T), bool)
REAL[1, 7:] = False
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
DROPLESS, CROWDED = MoeConfig(E), MoeConfig(E, capacity_factor=1.2)
FORMS = {"top2": (DROPLESS, "swiglu"), "top1": (MoeConfig(E, top_k=1, normalize_gates=False), "gelu"),
         "capacity": (CROWDED, "swiglu")}


def module(config, activation="swiglu") -> Moe:
    return Moe(config, D, F, activation, parent=None)


def random_params(config, activation="swiglu"):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: unbox(init_params(module(config, activation), jax.random.key(0), X, REAL)))
    return jax.tree.map(lambda a: 0.5 * rng.normal(size=a.shape).astype(np.float32), shapes)


def by_hand(p, c: MoeConfig, activation: str, drop: bool = True):
    """Output, and statistics, token after token."""
    p, y, act = oracle.float64(p), np.zeros((B, T, D)), oracle.ACTIVATIONS[activation]
    first, chosen, probs, z, dropped = np.zeros(E), np.zeros(E), np.zeros(E), 0.0, 0
    room = int(c.capacity_factor * T / E) if drop and c.capacity_factor else T
    for b in range(B):
        logits = X[b].astype(np.float64) @ p["router"]["kernel"]
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        best = np.argsort(-weights, axis=-1)[:, :c.top_k]
        load = np.zeros(E, int)
        for rank in range(c.top_k):
            for t in np.flatnonzero(REAL[b]):
                e = best[t, rank]
                chosen[e] += 1
                if rank == 0:
                    first[e], probs, z = first[e] + 1, probs + weights[t], z + np.log(np.exp(logits[t]).sum()) ** 2
                load[e] += 1
                if load[e] > room:
                    dropped += 1
                    continue
                gate = weights[t, e] / (weights[t, best[t]].sum() if c.normalize_gates else 1)
                h = X[b, t] @ p["up"][e]
                h = act(X[b, t] @ p["gate"][e]) * h if "gate" in p else act(h)
                y[b, t] += gate * (h @ p["down"][e])
    n = REAL.sum()
    return y, {"first": first / n, "chosen": chosen / n, "probs": probs / n, "z": z / n, "dropped": dropped}


@functools.cache
def compiled(name: str, drop: bool = True):
    return jax.jit(functools.partial(module(*FORMS[name]).apply, drop=drop))


@pytest.mark.quick
@pytest.mark.parametrize("name", FORMS)
def test_experts_match_a_loop(name):
    config, activation = FORMS[name]
    params = random_params(config, activation)
    y, statistics = compiled(name)({"params": params}, X, REAL)
    want, counts = by_hand(params, config, activation)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    assert (counts["dropped"] > 0) == (name == "capacity")
    for key, value in counts.items():
        np.testing.assert_allclose(statistics[key], value, rtol=1e-5, err_msg=key)


def test_generation_drops_nothing():
    params = random_params(CROWDED)
    y, statistics = compiled("capacity", drop=False)({"params": params}, X, REAL)
    np.testing.assert_allclose(y, by_hand(params, CROWDED, "swiglu", drop=False)[0], rtol=1e-5, atol=1e-5)
    assert statistics["dropped"] == 0


@pytest.mark.quick
def test_second_choices_queue_behind_all_first_ones():
    experts = np.array([[[0, 1], [0, 1], [1, 0]]])
    kept = within_capacity(experts, np.ones((1, 3), bool), num_experts=2, capacity=2)
    np.testing.assert_array_equal(kept, [[[True, True], [True, False], [True, False]]])
    kept = within_capacity(experts, np.array([[False, True, True]]), num_experts=2, capacity=2)
    np.testing.assert_array_equal(kept, [[[False, False], [True, True], [True, True]]])


@pytest.mark.quick
def test_balanced_routers_lose_one_and_lopsided_ones_more():
    even, one = np.full(E, 1 / E), np.eye(E)[0]

    def layers(first, chosen, probs):
        return {"first": first[None], "chosen": chosen[None], "probs": probs[None], "z": np.ones(1),
                "dropped": np.array([3.0])}
    for config, chosen, balanced in ((MoeConfig(E), even, 1), (MoeConfig(E, balance="mixtral"), 2 * even, 2)):
        loss, metrics = router_losses(config, layers(even, chosen, even))
        assert metrics["balance_loss"] == pytest.approx(balanced) and metrics["dropped"] == 3
        assert loss == pytest.approx(0.01 * balanced + 0.001)
        assert router_losses(config, layers(one, one, one))[1]["balance_loss"] == pytest.approx(E)


@functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def scalar(params, x):
    y, statistics = module(CROWDED).apply({"params": params}, x, REAL)
    return (y * np.random.default_rng(2).normal(size=X.shape).astype(np.float32)).sum() + statistics["z"], y


@functools.cache
def on_one_device():
    return jax.device_get(jax.jit(scalar)(random_params(CROWDED), X))


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_eight_devices_give_the_values_and_gradients_of_one(kind):
    params, want = random_params(CROWDED), on_one_device()
    mesh = make_mesh({"data": 2, "model": 2, "expert": 2}, explicit=kind == "explicit")
    axes = axes_of(jax.eval_shape(lambda: init_params(module(CROWDED), jax.random.key(0), X, REAL)))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings({"moe": axes}, {"moe": params}, mesh)["moe"])
        assert placed["up"].addressable_shards[0].data.shape == (E // 2, D, F // 2)
        got = jax.jit(scalar)(placed, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


@pytest.mark.quick
@pytest.mark.parametrize("fields, words", [
    (dict(num_experts=2, top_k=3), "top_k=3 must be at least 1 and at most num_experts=2"),
    (dict(num_experts=2, capacity_factor=0.0), "capacity_factor=0.0 must be positive, or None"),
    (dict(num_experts=2, balance="even"), "unknown balance 'even'; choose from switch, mixtral"),
])
def test_mistakes_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        MoeConfig(**fields)
