"""Stacks against a Python loop of blocks, hooks at the right places, and what rematerialisation changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.kernels.attention import mask as masks
from mmjax.layers import Block, BlockConfig, Hook, init_stack, num_hooks, run_layers, run_stack, unbox

CONFIG = BlockConfig(8, 2, 12, dropout=0.1)
MASK = masks.causal(np.ones((2, 5), np.int32))
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def stack():
    """A block and the parameters of five of it."""
    block = Block(CONFIG, parent=None)
    return block, unbox(jax.jit(init_stack(block, 5, X, MASK))(jax.random.key(0)))


@pytest.mark.quick
def test_stack_equals_a_loop_of_blocks(stack):
    block, params = stack
    got, cache = jax.jit(lambda params, x: run_stack(block, params, x, MASK))(params, X)
    x, one = X, jax.jit(lambda params, x: block.apply({"params": params}, x, MASK)[0])
    for i in range(5):
        x = one(jax.tree.map(lambda a, i=i: a[i], params), x)
    assert cache is None
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-5)


def test_every_layer_drops_its_own_units(stack):
    """Equal layers under one key: if they dropped the same units, the second change would repeat the first."""
    block, params = stack
    silent = jax.tree.map(jnp.zeros_like, params)
    silent["mlp"]["down"]["bias"] = jnp.ones((5, 8))        # each block adds dropout(1) to every feature
    run = jax.jit(lambda n, key: run_stack(block, jax.tree.map(lambda a: a[:n], silent), X, MASK, key=key)[0] - X,
                  static_argnums=0)
    first, both = (np.asarray(run(n, jax.random.key(3))).round(3) for n in (1, 2))
    assert np.any(first == 0) and np.any(both == 1.111)     # 1 / 0.9 once: dropped in one layer, kept in the other


class Recorder(nn.Module):
    """A block that records that it ran: moves the tape x by one cell and leaves a 0 in the first; counts the 0s."""

    @nn.compact
    def run(self, x, mask, rotary=None, key=None, cache=None, layer=None, bias=None):
        self.param("unused", nn.initializers.zeros, ())
        x = jnp.roll(x, 1, axis=1).at[:, 0].set(0)
        return x, cache, {"ran": (x == 0).sum()}


@pytest.mark.quick
@pytest.mark.parametrize("num_layers, every, offset, count", [
    (6, 1, 0, 6), (6, 2, 0, 3), (6, 3, 2, 2), (7, 3, 0, 3), (8, 3, 2, 2), (5, 7, 0, 1), (5, 2, 4, 1),
    (80, 7, 0, 12),         # Flamingo-80B as published
    (80, 7, 6, 11),         # the same under OpenFlamingo's rule: before block i when (i + 1) mod n = 0
])
def test_hooks_run_in_order_before_every_nth_block(num_layers, every, offset, count):
    assert num_hooks(num_layers, every, offset) == count
    number = jnp.arange(1, count + 1, dtype=jnp.float32)
    hook = Hook(lambda k, x: jnp.roll(x, 1, axis=1).at[:, 0].set(k), number, every, offset)
    tape = jnp.full((1, num_layers + count + 1, 1), -1.0)
    params = {"unused": jnp.zeros(num_layers)}
    got, _, statistics = jax.jit(lambda tape: run_layers(Recorder(parent=None), params, tape, MASK, hook=hook))(tape)
    np.testing.assert_array_equal(statistics["ran"], np.arange(num_layers) + 1)
    want, seen = [-1], 0
    for block in range(num_layers):
        if block >= offset and (block - offset) % every == 0:
            seen += 1
            want.append(seen)
        want.append(0)
    np.testing.assert_array_equal(got[0, ::-1, 0], want)


def test_remat_policies_give_equal_gradients_and_keep_less(stack):
    block, params = stack
    kept, gradients = {}, {}
    for policy in ("none", "dots", "full", "offload"):
        loss = lambda params, policy=policy: jnp.square(run_stack(block, params, X, MASK, remat=policy)[0]).sum()  # noqa: E731
        gradients[policy] = jax.jit(jax.grad(loss))(params)
        kept[policy] = residuals(jax.make_jaxpr(jax.grad(loss))(params))
    assert kept["full"] < kept["dots"] < kept["none"]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(gradients["none"]))
    for policy in ("dots", "full", "offload"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest),
                     gradients["none"], gradients[policy])


def residuals(jaxpr) -> int:
    """Numbers that the forward scan over the blocks hands to the backward one."""
    forward = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    return sum(v.aval.size for v in forward.outvars if v.aval.shape[:1] == (5,))


@pytest.mark.quick
def test_an_unknown_policy_is_named(stack):
    with pytest.raises(ValueError, match="unknown remat policy 'most'; choose from none, full, dots"):
        run_stack(*stack, X, MASK, remat="most")
