import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import mask as masks
from mmjax.kernels.attention.blockwise import blockwise
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.reference import reference

SCALE = 0.3
small_blocks = functools.partial(blockwise, block_rows=6, block_keys=5)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grads(run, q, k, v, bias, mask, d_out):
    """The output, and the gradients with respect to q, k, v and bias."""
    out, vjp = jax.vjp(lambda *args: run(*args[:3], bias=args[3], mask=mask, rotary=None, scale=SCALE), q, k, v, bias)
    return out, vjp(d_out)


def apply(run, case):
    return value_and_grads(run, *case[:4], IntervalMask(case.start, case.stop), case.d_out)


def cast(case, dtype):
    return case._replace(**{name: jnp.asarray(getattr(case, name), dtype) for name in ("q", "k", "v", "d_out")})


def assert_close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        size = max(float(jnp.abs(b).max()), 1)
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * size)


# (B, T, S, N, K, H), rows of the bias
SHAPES = [
    ((2, 13, 13, 2, 2, 8), 0),      # neither length a multiple of its block
    ((1, 12, 10, 2, 1, 4), 0),      # both lengths a multiple, keys shared by two heads
    ((2, 7, 23, 6, 2, 3), 2),       # three heads a key head, bias
    ((2, 11, 4, 2, 2, 5), 1),       # fewer keys than a block, bias shared by the rows
    ((2, 1, 17, 8, 1, 4), 0),       # one query, more heads than rows of a block
]


@pytest.mark.quick
@pytest.mark.parametrize("shape, bias_rows", SHAPES)
def test_values_match_a_loop_over_queries(random_case, attention_loop, shape, bias_rows):
    case = random_case(shape, bias_rows)
    got, _ = apply(small_blocks, case)
    np.testing.assert_allclose(got, attention_loop(case, SCALE), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape, bias_rows", SHAPES)
def test_gradients_match_the_reference(random_case, shape, bias_rows, dtype, tolerance):
    case = cast(random_case(shape, bias_rows, seed=1), dtype)
    got, want = apply(small_blocks, case), apply(reference, cast(case, jnp.float32))
    chex.assert_type([got[0], *got[1][:3]], dtype)
    assert_close(got, want, tolerance)


@pytest.mark.parametrize("soft_cap, tolerance", [(0.7, 2e-6), (50.0, 2e-6)])
def test_soft_cap_matches_the_loop_and_the_reference(random_case, attention_loop, soft_cap, tolerance):
    case = random_case(*SHAPES[2])
    got, want = (apply(functools.partial(run, soft_cap=soft_cap), case) for run in (small_blocks, reference))
    assert_close(got, want, tolerance)
    np.testing.assert_allclose(got[0], attention_loop(case, SCALE, soft_cap), rtol=2e-6, atol=2e-6)


def test_default_blocks_match_the_reference(random_case):
    case = random_case((1, 150, 300, 2, 2, 8))
    assert_close(apply(blockwise, case), apply(reference, case), 3e-6)


def test_queries_without_keys_give_exactly_zero(random_case):
    case = random_case((1, 14, 20, 2, 2, 4), bias_rows=1)
    start = np.full((1, 14), 7, np.int32)
    stop = np.where(np.arange(14) % 14 < 8, 3, 12)[None].astype(np.int32)  # a whole block and a part of one see nothing
    out, grads = apply(small_blocks, case._replace(start=start, stop=stop))
    chex.assert_tree_all_finite((out, grads))
    for rows in (out[:, :8], grads[0][:, :8], grads[3][:, :, :8]):
        np.testing.assert_array_equal(rows, 0)
    assert (np.asarray(out[:, 8:]) != 0).all()


@pytest.mark.quick
def test_blocks_that_nobody_sees_are_not_read(random_case):
    """A NaN that is read shows: 0 * NaN is NaN."""
    case = random_case((1, 24, 40, 2, 2, 4))
    hidden = (np.arange(40) < 10) | (np.arange(40) >= 20)
    k, v = (np.where(hidden[:, None, None], np.nan, x).astype(np.float32) for x in (case.k, case.v))
    case = case._replace(k=k, v=v, start=np.full((1, 24), 10, np.int32), stop=np.full((1, 24), 20, np.int32))
    out, grads = apply(small_blocks, case)
    chex.assert_tree_all_finite((out, grads[:3]))
    for grad in grads[1:3]:
        np.testing.assert_array_equal(grad[:, hidden], 0)


def test_packed_documents_do_not_read_each_other(random_case):
    case = random_case((1, 40, 40, 1, 1, 4))
    mask = masks.causal(np.arange(40)[None] // 30 + 1)      # the second document starts where blocks do
    case = case._replace(start=np.asarray(mask.start), stop=np.asarray(mask.stop))
    poisoned = np.where((np.arange(40) < 30)[:, None, None], case.k, np.nan).astype(np.float32)
    got, want = apply(small_blocks, case._replace(k=poisoned)), apply(small_blocks, case)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x: x[:, :30], tree) for tree in (got, want)))
    assert np.isnan(got[0][:, 30:]).all()


def intermediate_sizes(run, *args):
    """Elements of every array that the computation makes, in all its loops."""

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (var.aval.size for var in eqn.outvars)
            for sub in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    yield from sizes(sub)

    return list(sizes(jax.make_jaxpr(value_and_grads, static_argnums=0)(run, *args).jaxpr))


def test_nothing_has_both_lengths(random_case):
    t, s = 96, 80
    case = random_case((1, t, s, 2, 2, 4))
    args = case.q, case.k, case.v, None, IntervalMask(case.start, case.stop), case.d_out
    run = functools.partial(blockwise, block_rows=16, block_keys=16)
    assert max(intermediate_sizes(run, *args)) < t * s
    assert max(intermediate_sizes(reference, *args)) >= t * s


def test_runs_with_64_bit_types_enabled(random_case):
    case = random_case(*SHAPES[3])
    with jax.enable_x64(True):
        got = apply(small_blocks, case)
    chex.assert_type(jax.tree.leaves(got), jnp.float32)
    assert_close(got, apply(reference, case), 2e-6)


def test_runs_under_vmap_and_inside_a_rematerialised_scan(random_case):
    case = random_case((3, 13, 13, 2, 2, 4))
    mask = IntervalMask(case.start, case.stop)

    def loss(run, q):
        def one_row(x, mask):
            mask = jax.tree.map(lambda bound: bound[None], mask)
            return run(x[None], x[None], x[None], mask=mask, rotary=None, bias=None, scale=SCALE)[0]

        @jax.checkpoint
        def layer(x, _):
            return x + jax.vmap(one_row)(x, mask), None

        return (jax.lax.scan(layer, q, length=2)[0] * case.d_out).sum()

    got, want = (jax.jit(jax.value_and_grad(functools.partial(loss, run)))(case.q) for run in (small_blocks, reference))
    assert_close(got, want, 1e-5)
