import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.kernels.attention import IntervalMask, Rotary
from mmjax.kernels.attention.blockwise import blockwise
from mmjax.kernels.attention.reference import reference
from mmjax.kernels.attention.sharded import on_shards

SHAPE = 4, 16, 16, 4, 2, 4
RUNS = {"blockwise": functools.partial(blockwise, block_rows=8, block_keys=8), "reference": reference}


def make_mesh(kind, **sizes):
    sizes = [sizes.get(axis, 1) for axis in ("data", "fsdp", "model", "seq")]
    return jax.make_mesh(sizes, ("data", "fsdp", "model", "seq"), axis_types=(kind,) * 4)


def value_and_grads(run, case):
    positions = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), (4, 16))

    def call(q, k, v, bias):
        mask, rotary = IntervalMask(case.start, case.stop), Rotary(positions, positions)
        return run(q, k, v, mask=mask, rotary=rotary, bias=bias, scale=0.3)

    out, vjp = jax.vjp(call, *case[:4])
    return out, vjp(case.d_out)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind, sizes", [
    (AxisType.Auto, dict(data=2, model=2, seq=2)),
    (AxisType.Auto, dict(fsdp=2, model=4)),     # more devices than key heads
    (AxisType.Explicit, dict(fsdp=2, model=2, seq=2)),
])
def test_every_split_gives_the_values_of_one_device(random_case, kind, sizes, name):
    case = random_case(SHAPE, bias_rows=1)
    want = value_and_grads(reference, case)
    mesh = make_mesh(kind, **sizes)
    heads = "model" if sizes["model"] == 2 else None
    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, P(("data", "fsdp"), "seq", heads))
        q, k, v, d_out = (jax.device_put(x, split) for x in (case.q, case.k, case.v, case.d_out))
        case = case._replace(q=q, k=k, v=v, d_out=d_out)
        got = jax.jit(functools.partial(value_and_grads, on_shards(RUNS[name])))(case)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.quick
def test_rows_and_heads_stay_on_their_devices(random_case):
    case = random_case(SHAPE)
    mesh = make_mesh(AxisType.Auto, data=4, model=2)
    split = NamedSharding(mesh, P("data", None, "model"))
    args = [jax.device_put(x, split) for x in case[:3]]
    mask = jax.device_put(IntervalMask(case.start, case.stop), NamedSharding(mesh, P("data")))

    def compiled(run):
        return jax.jit(lambda q, k, v, mask: run(q, k, v, mask=mask, rotary=None, bias=None, scale=0.3)).lower(
            *args, mask).compile()

    with jax.set_mesh(mesh):
        program = compiled(on_shards(RUNS["blockwise"]))
        assert "all-gather" not in program.as_text()
        assert "all-gather" in compiled(RUNS["blockwise"]).as_text()     # what the loops alone would do
        assert program(*args, mask).sharding.spec == P("data", None, "model")


def test_with_explicit_axes_the_output_is_laid_out_as_the_queries(random_case):
    case = random_case(SHAPE)
    mask = IntervalMask(case.start, case.stop)
    with jax.set_mesh(make_mesh(AxisType.Explicit, data=4, model=2)):
        for spec in (P("data", None, "model", None), P(None, None, "model", None)):
            q = jax.device_put(case.q, spec)
            out = on_shards(reference)(q, case.k, case.v, mask=mask, rotary=None, bias=None, scale=0.3)
            assert jax.typeof(out).sharding.spec == spec


def test_sharded_arrays_without_a_current_mesh(random_case, attention_loop):
    case = random_case(SHAPE)
    split = NamedSharding(make_mesh(AxisType.Auto, data=4, model=2), P("data", None, "model"))
    q, k, v = (jax.device_put(x, split) for x in case[:3])
    run = functools.partial(on_shards(RUNS["blockwise"]), rotary=None, bias=None, scale=0.3)
    got = jax.jit(lambda q, k, v: run(q, k, v, mask=IntervalMask(case.start, case.stop)))(q, k, v)
    np.testing.assert_allclose(got, attention_loop(case, 0.3), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("taken", [{"data"}, {"data", "fsdp", "model", "seq"}])
def test_inside_a_shard_map_only_the_other_axes_are_used(random_case, attention_loop, taken):
    case = random_case(SHAPE)
    run = functools.partial(on_shards(RUNS["blockwise"]), rotary=None, bias=None, scale=0.3)
    with jax.set_mesh(make_mesh(AxisType.Auto, data=2, fsdp=2, model=2)):
        local = jax.shard_map(
            lambda q, k, v, mask: run(q, k, v, mask=mask), in_specs=P("data"), out_specs=P("data"), axis_names=taken,
            check_vma=False)
        got = jax.jit(local)(*case[:3], IntervalMask(case.start, case.stop))
    np.testing.assert_allclose(got, attention_loop(case, 0.3), rtol=2e-6, atol=2e-6)
