"""Products counted in a jaxpr: loops multiplied out, recomputation included, attention left out."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.kernels.attention import attention
from mmjax.kernels.attention import mask as masks
from mmjax.parallel import make_mesh
from mmjax.plan.operations import count_products

X, W = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
ONE = 2 * 4 * 8 * 8


def layers(remat: bool):
    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w), None

    layer = jax.checkpoint(layer) if remat else layer
    return lambda x, ws: jax.lax.scan(layer, x, ws)[0].sum()


@pytest.mark.parametrize("remat, per_layer", [(False, 2 + 4), (True, 2 + 2 + 4)])
def test_a_scan_counts_every_round_and_remat_what_it_repeats(remat, per_layer):
    jaxpr = jax.make_jaxpr(jax.grad(layers(remat), argnums=(0, 1)))(X, W)
    assert count_products(jaxpr) == 3 * per_layer * ONE


def test_every_device_of_a_shard_map_counts():
    mesh = make_mesh({"data": 2, "model": 4})
    local = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert count_products(jax.make_jaxpr(local)(X, jax.ShapeDtypeStruct((8, 8), jnp.float32))) == ONE * 4


def test_a_branch_counts_once():
    jaxpr = jax.make_jaxpr(lambda b, x: jax.lax.cond(b, lambda: x @ x.T, lambda: jnp.zeros((4, 4))))(True, X)
    assert count_products(jaxpr) == 2 * 4 * 4 * 8


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_attention_is_not_counted(implementation):
    q = jax.ShapeDtypeStruct((1, 16, 2, 8), jnp.float32)

    def loss(q, k, v):
        mask = masks.causal(jnp.ones((1, 16), jnp.int32))
        return attention(q, k, v, mask=mask, implementation=implementation).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, q, q)
    assert "dot_general" in str(jaxpr) and count_products(jaxpr) == 0
