"""Queries and keys split along the sequence of eight virtual devices, against one device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.kernels.attention import IntervalMask, Rotary, attention, blockwise
from mmjax.kernels.attention import mask as masks
from mmjax.kernels.attention.reference import reference
from mmjax.kernels.attention.ring import Passes
from mmjax.kernels.attention.sharded import on_shards

SHAPE = 2, 16, 16, 4, 2, 4
AXES = ("data", "fsdp", "model", "seq")
BLOCKS = dict(block_rows=8, block_keys=4)
PASSES = Passes(*(functools.partial(run, **BLOCKS) for run in (blockwise.forward, blockwise.backward)))
RING = on_shards(functools.partial(blockwise.blockwise, **BLOCKS), PASSES)
TWO_DOCUMENTS = np.array([[1] * 5 + [2] * 11, [1] * 15 + [0]])
FOUR_DOCUMENTS = np.repeat([[1, 2, 3, 4]] * 2, 4, axis=1)
IMAGES = np.array([[-1] * 3 + [0] * 4 + [1] * 9, [2] * 16])
MASKS = {
    "packed": masks.causal(TWO_DOCUMENTS),
    "causal": masks.causal(np.ones((2, 16), np.int32)),
    "per image": masks.per_image(IMAGES, 4),
    "bidirectional": masks.full(TWO_DOCUMENTS),
}


def make_mesh(kind=AxisType.Auto, **sizes):
    return jax.make_mesh([sizes.get(axis, 1) for axis in AXES], AXES, axis_types=(kind,) * 4)


def value_and_grads(run, case, mask, rotary=None, soft_cap=None):
    def call(q, k, v, bias):
        return run(q, k, v, mask=mask, rotary=rotary, bias=bias, scale=0.3, soft_cap=soft_cap)

    out, vjp = jax.vjp(call, *case[:4])
    return out, vjp(case.d_out)


def on_mesh(mesh, run, case, *args, **kwargs):
    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, P("data", "seq", "model"))
        q, k, v, d_out = (jax.device_put(x, split) for x in (case.q, case.k, case.v, case.d_out))
        case = case._replace(q=q, k=k, v=v, d_out=d_out)
        got = jax.jit(functools.partial(value_and_grads, run, **kwargs))(case, *args)
    return jax.block_until_ready(got)       # else later compilations and waiting collectives fight for the threads


def on_one_device(case, mask, rotary=None, soft_cap=None):
    return jax.jit(functools.partial(value_and_grads, reference, soft_cap=soft_cap))(case, mask, rotary)


def assert_close(got, want, tolerance=3e-6):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(model=2, seq=4)


@pytest.mark.quick
@pytest.mark.parametrize("name", MASKS)
def test_ring_equals_one_device(random_case, mesh, name):
    case = random_case(SHAPE)
    assert_close(on_mesh(mesh, RING, case, MASKS[name]), on_one_device(case, MASKS[name]))


@pytest.mark.parametrize("kind, sizes", [
    (AxisType.Auto, dict(seq=8)),
    (AxisType.Auto, dict(data=2, model=2, seq=2)),
    (AxisType.Explicit, dict(data=2, seq=4)),
])
@pytest.mark.parametrize("bias_rows", [1, 2])
def test_random_intervals_with_a_bias_and_a_cap(random_case, kind, sizes, bias_rows):
    case = random_case(SHAPE, bias_rows)
    mask = IntervalMask(case.start, case.stop)      # some are empty, some reach past either end
    got = on_mesh(make_mesh(kind, **sizes), RING, case, mask, soft_cap=1.5)
    assert_close(got, on_one_device(case, mask, soft_cap=1.5))


LINE = np.broadcast_to(np.arange(16, dtype=np.int32), (2, 16))


@pytest.mark.parametrize("positions, form", [
    (LINE, dict(layout="interleaved", xpos_scale_base=8.0, xpos_center=8)),
    (np.stack(np.divmod(LINE, 4), -1), dict(layout="split")),
])
def test_rotary_and_xpos_positions_travel_with_their_keys(random_case, mesh, positions, form):
    case = random_case(SHAPE)
    rotary = Rotary(positions, positions, **form)
    got = on_mesh(mesh, RING, case, MASKS["packed"], rotary)
    assert_close(got, on_one_device(case, MASKS["packed"], rotary), 1e-5)


def test_queries_without_keys_give_exactly_zero(random_case, mesh):
    case = random_case(SHAPE)
    out, (d_q, *_) = on_mesh(mesh, RING, case, MASKS["packed"])
    np.testing.assert_array_equal(out[1, 15], 0)
    np.testing.assert_array_equal(d_q[1, 15], 0)
    assert (np.asarray(out)[1, :15] != 0).all()


@pytest.mark.parametrize("segments, visits", [(np.ones((2, 16), np.int32), 10), (FOUR_DOCUMENTS, 4)])
def test_blocks_that_no_query_sees_are_not_visited(random_case, segments, visits):
    """Of the 16 pairs of a device and a block: 10 for one causal document, 4 for a document per device."""
    counts = {"forward": 0, "backward": 0}

    def counted(name, run):
        def call(*args, **kwargs):
            jax.debug.callback(functools.partial(count, name))
            return run(*args, **kwargs)
        return call

    def count(name):
        counts[name] += 1

    ring = on_shards(None, Passes(*(counted(run.func.__name__, run) for run in PASSES)))
    jax.block_until_ready(on_mesh(make_mesh(seq=4, model=2), ring, random_case(SHAPE), masks.causal(segments)))
    jax.effects_barrier()
    assert counts == {"forward": 2 * visits, "backward": 2 * visits}     # twice: the heads are split too


def sent_bytes(program: str) -> int:
    """Bytes of the arrays that the program's collective-permutes send, each counted once."""
    sizes = {"f32": 4, "bf16": 2, "s32": 4}
    sent = re.findall(r" = (\w+)\[([\d,]*)\]\S* collective-permute\(", program)
    return sum(sizes[kind] * int(np.prod([int(n) for n in dims.split(",")])) for kind, dims in sent)


def compiled(run, seq, dtype, shape=(2, 64, 4, 2, 16)):
    """HLO of value and gradients with all arrays split along the sequence."""
    b, t, n, kv, h = shape
    mesh = make_mesh(data=8 // seq, seq=seq)
    split = NamedSharding(mesh, P(None, "seq"))
    array = lambda heads: jax.ShapeDtypeStruct((b, t, heads, h), dtype, sharding=split)  # noqa: E731
    mask = IntervalMask(*[jax.ShapeDtypeStruct((b, t), jnp.int32, sharding=split)] * 2)

    def call(q, k, v, mask, d_out):
        out, vjp = jax.vjp(lambda *args: run(*args, mask=mask), q, k, v)
        return out, vjp(d_out)

    with jax.set_mesh(mesh):
        return jax.jit(call).lower(array(n), array(kv), array(kv), mask, array(n)).compile().as_text()


@pytest.mark.quick
def test_keys_are_passed_on_and_never_gathered():
    """Per device: a forward pass sends its 2 blocks in each of the 7 rounds, a backward pass 4 in each of 8."""
    program = compiled(attention, 8, jnp.float32)
    assert "all-gather" not in program and "all-to-all" not in program
    block = 2 * (64 // 8) * 2 * 16 * 4
    # Of k, v, dk, dv the program sends: 2 in the forward loop; 2 before the backward loop, 4 in it, 2 after it.
    assert sent_bytes(program) == block * (2 + 2 + 4 + 2)
    assert "all-gather" in compiled(functools.partial(attention, implementation="reference"), 8, jnp.float32)


def test_keys_that_do_not_divide_are_whole_on_every_device(random_case, mesh):
    case = random_case((2, 16, 10, 4, 2, 4))
    mask = IntervalMask(case.start, case.stop)
    assert_close(on_mesh_whole_keys(mesh, case, mask), on_one_device(case, mask))


def on_mesh_whole_keys(mesh, case, mask):
    with jax.set_mesh(mesh):
        return jax.block_until_ready(jax.jit(functools.partial(value_and_grads, RING))(case, mask))
