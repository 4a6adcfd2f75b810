import functools
import inspect
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mmjax.kernels.attention import IntervalMask, Rotary
from mmjax.kernels.attention import mask as masks
from mmjax.kernels.attention.pallas_tpu import pallas_tpu
from mmjax.kernels.attention.reference import reference

SCALE = 0.3
small = functools.partial(pallas_tpu, block_queries=128, block_keys=32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_grads(run, soft_cap, q, k, v, bias, mask, rotary, d_out):
    """The output, and the gradients with respect to q, k, v and bias."""
    call = functools.partial(run, mask=mask, rotary=rotary, scale=SCALE, soft_cap=soft_cap)
    out, vjp = jax.vjp(lambda q, k, v, bias: call(q, k, v, bias=bias), q, k, v, bias)
    return out, vjp(d_out)


def apply(run, case, rotary=None, soft_cap=None):
    return value_and_grads(run, soft_cap, *case[:4], IntervalMask(case.start, case.stop), rotary, case.d_out)


def cast(case, dtype):
    return case._replace(**{name: jnp.asarray(getattr(case, name), dtype) for name in ("q", "k", "v", "d_out")})


def assert_close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        size = max(float(jnp.abs(b).max()), 1)
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * size)


# (B, T, S, N, K, H), rows of the bias, bound of the logits
SHAPES = [
    ((2, 13, 13, 2, 2, 8), 0, None),        # less than a block
    ((1, 256, 64, 4, 2, 72), 0, None),      # whole blocks, keys shared by the two heads of a step
    ((2, 150, 70, 6, 2, 20), 2, 2.0),       # three heads a key head, taken one by one; bias, soft cap
    ((2, 129, 33, 3, 1, 32), 1, None),      # bias shared by the rows, one token in the last blocks
    ((2, 1, 40, 4, 4, 8), 0, None),         # one query, two key heads a step
]


@pytest.mark.quick
@pytest.mark.parametrize("shape, bias_rows, soft_cap", SHAPES)
def test_values_and_gradients_match(random_case, attention_loop, shape, bias_rows, soft_cap):
    case = random_case(shape, bias_rows)
    got, want = (apply(run, case, soft_cap=soft_cap) for run in (small, reference))
    np.testing.assert_allclose(got[0], attention_loop(case, SCALE, soft_cap), rtol=3e-6, atol=3e-6)
    assert_close(got, want, 3e-6)


def test_bfloat16_matches_float32_of_the_same_numbers(random_case):
    case = cast(random_case(SHAPES[1][0]), jnp.bfloat16)
    got, want = apply(small, case), apply(reference, cast(case, jnp.float32))
    chex.assert_type([got[0], *got[1][:3]], jnp.bfloat16)
    assert_close(got, want, 1e-2)


def test_gradients_are_those_of_the_bits(random_case):
    case = random_case(SHAPES[2][0], 2)
    chex.assert_trees_all_equal(apply(small, case), apply(small, case))


def places(rng, batch_size, num_tokens, limit=300):
    """Positions of packed documents: int32[B, T] that count up from a random number, anew from 0 now and then."""
    start = rng.integers(0, limit, (batch_size, 1), np.int32)
    index = np.arange(num_tokens, dtype=np.int32)
    return np.where(index < num_tokens // 2, start + index, index - num_tokens // 2)


@pytest.mark.parametrize("form", [
    dict(layout="split"),
    dict(layout="interleaved", rotary_dim=12, base=500.0),
    dict(layout="interleaved", xpos_scale_base=64.0, xpos_center=40),
    dict(layout="interleaved", grid=True),
])
def test_rotary_turns_queries_and_keys(random_case, form):
    rng = np.random.default_rng(0)
    q_positions, k_positions = places(rng, 2, 140), places(rng, 2, 70)
    form = dict(form)
    if form.pop("grid", False):
        q_positions, k_positions = (np.stack([x // 9, x % 9], -1) for x in (q_positions, k_positions))
    rotary = Rotary(q_positions, k_positions, **form)
    case = random_case((2, 140, 70, 2, 2, 20))
    assert_close(apply(small, case, rotary), apply(reference, case, rotary), 3e-5)


def test_blocks_that_nobody_sees_are_not_read(random_case):
    """A NaN that is read shows: 0 * NaN is NaN."""
    case = random_case((1, 300, 160, 2, 2, 8))
    hidden_key, blind = (np.arange(160) < 32) | (np.arange(160) >= 96), np.arange(300) >= 128
    k, v = (np.where(hidden_key[:, None, None], np.nan, x).astype(np.float32) for x in (case.k, case.v))
    q = np.where(blind[:, None, None], np.nan, case.q).astype(np.float32)
    start = np.full((1, 300), 40, np.int32)
    case = case._replace(q=q, k=k, v=v, start=start, stop=np.where(blind, 40, 90)[None].astype(np.int32))
    out, (d_q, d_k, d_v, _) = apply(small, case)
    chex.assert_tree_all_finite((out, d_q, d_k, d_v))
    for rows in (out[:, blind], d_q[:, blind], d_k[:, hidden_key], d_v[:, hidden_key]):
        np.testing.assert_array_equal(rows, 0)
    assert (out[:, ~blind] != 0).all() and (d_k[:, 40:90] != 0).all()


def test_a_long_row_is_taken_in_parts(random_case, monkeypatch):
    case = random_case((1, 300, 40, 2, 2, 8), 1)
    monkeypatch.setattr("mmjax.kernels.attention.pallas_tpu.ROW_BYTES", 1)
    rotary = Rotary(*(places(np.random.default_rng(0), 1, n) for n in (300, 40)))
    run = functools.partial(pallas_tpu, block_queries=128, block_keys=16)   # of its own: `small` may be compiled
    assert_close(apply(run, case, rotary), apply(reference, case, rotary), 3e-5)


def xpos_loop(case, rotary, scale):
    """float64[B, T, N, H]: rotated by complex numbers, each pair decayed by the distance of its query and key."""
    b, t, n, h = case.q.shape
    i = np.arange(h // 2)
    zeta, theta = (2 * i + 0.4 * h) / (1.4 * h), rotary.base ** (-i / (h / 2))

    def turned(x, places):
        pairs = np.asarray(x, np.float64).reshape(*x.shape[:3], h // 2, 2)
        return (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * places[..., None, None] * theta)

    q, k = turned(case.q, rotary.q_positions), turned(case.k, rotary.k_positions)
    out = np.zeros(case.q.shape)
    for row, at, head in np.ndindex(b, t, n):
        seen = slice(max(case.start[row, at], 0), max(case.stop[row, at], 0))
        distance = (rotary.q_positions[row, at] - rotary.k_positions[row, seen]) / rotary.xpos_scale_base
        logits = (zeta ** distance[:, None] * (q[row, at, head] * k[row, seen, head].conj()).real).sum(1) * scale
        if len(logits):
            weights = np.exp(logits - logits.max())
            out[row, at, head] = weights @ np.asarray(case.v[row, seen, head], np.float64) / weights.sum()
    return out


@pytest.mark.quick
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 3e-5), (jnp.bfloat16, 1e-2)])
def test_xpos_at_position_65536(random_case, dtype, tolerance):
    """A document that began far to the left of the row ends, and another begins, in the middle of a block."""
    t = 160
    index = np.arange(t, dtype=np.int32)
    positions = np.where(index < 100, 65_436 + index, index - 100)[None]
    mask = masks.causal(np.where(index < 100, 1, 2)[None].astype(np.int32))
    case = cast(random_case((1, t, t, 2, 2, 16)), dtype)
    case = case._replace(start=np.asarray(mask.start), stop=np.asarray(mask.stop))
    rotary = Rotary(positions, positions, layout="interleaved", xpos_scale_base=512.0)
    out, grads = apply(small, case, rotary)
    chex.assert_tree_all_finite((out, grads[:3]))
    rounded = case._replace(**{name: np.asarray(getattr(case, name), np.float64) for name in "qkv"})
    np.testing.assert_allclose(np.asarray(out, np.float64), xpos_loop(rounded, rotary, SCALE), rtol=0, atol=tolerance)

    near = np.where(index < 100, index, index - 100)[None]  # the same distances, where float32 angles suffice
    near = Rotary(near, near, layout="interleaved", xpos_scale_base=512.0)
    _, want = apply(reference, cast(case, jnp.float32), near)
    # Scales of 2^115 and 2^-115 meet in the block: what is below 2^-11 before them underflows, and is lost.
    assert_close(grads[:3], want[:3], max(tolerance, 2**-11))


def test_xpos_of_a_longer_document_loses_its_decay_in_one_block_only(random_case):
    """Scales of 2^1000 would meet in the first block of queries; the third document has blocks of its own."""
    t = 160
    index = np.arange(t, dtype=np.int32)
    segments = 1 + (index >= 100) + (index >= 128)
    positions = np.where(index < 100, 300_000, 0) + index - np.select([index >= 128, index >= 100], [128, 100], 0)
    mask = masks.causal(segments[None].astype(np.int32))
    case = random_case((1, t, t, 2, 2, 16))._replace(start=np.asarray(mask.start), stop=np.asarray(mask.stop))
    positions = positions[None].astype(np.int32)
    rotary = Rotary(positions, positions, layout="interleaved", xpos_scale_base=512.0)
    out, grads = apply(small, case, rotary)
    chex.assert_tree_all_finite((out, grads[:3]))
    np.testing.assert_allclose(out[:, 128:], xpos_loop(case, rotary, SCALE)[:, 128:], rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_gradients_match_finite_differences(random_case, attention_loop, name):
    case = random_case((1, 5, 9, 2, 1, 8), 1)
    got = apply(small, case)[1][["q", "k", "v", "bias"].index(name)]
    direction, step = np.random.default_rng(1).standard_normal(got.shape), 1e-5
    up, down = (case._replace(**{name: getattr(case, name) + sign * step * direction}) for sign in (1, -1))
    slope = ((attention_loop(up, SCALE) - attention_loop(down, SCALE)) * case.d_out).sum() / (2 * step)
    np.testing.assert_allclose((got * direction).sum(), slope, rtol=2e-5, atol=2e-5)


def test_nothing_races_in_the_tpu_interpreter(random_case):
    case = random_case((1, 140, 40, 2, 1, 8))
    accepted = inspect.signature(pltpu.InterpretParams).parameters
    params = pltpu.InterpretParams(detect_races=True, **({"on_race": "raise"} if "on_race" in accepted else {}))
    run = functools.partial(pallas_tpu, block_queries=128, block_keys=16, interpret=params)
    rotary = Rotary(*(places(np.random.default_rng(0), 1, n) for n in (140, 40)))
    assert_close(apply(run, case, rotary), apply(reference, case, rotary), 3e-5)
    if "on_race" not in accepted:       # before jax 0.12 a race is only noted
        from jax._src.pallas.mosaic.interpret import interpret_pallas_call
        assert not interpret_pallas_call.races.races_found


@pytest.mark.quick
@pytest.mark.parametrize("head_dim, dtype, bias_rows", [(72, jnp.bfloat16, 0), (64, jnp.float32, 1)])
def test_lowers_for_a_tpu(random_case, head_dim, dtype, bias_rows):
    case = cast(random_case((1, 300, 140, 4, 2, head_dim), bias_rows), dtype)
    rotary = Rotary(*(places(np.random.default_rng(0), 1, n) for n in (300, 140)), xpos_scale_base=512.0)
    args = pallas_tpu, 30.0, *case[:4], IntervalMask(case.start, case.stop), rotary, case.d_out
    text = value_and_grads.trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2       # the kernels, not their interpretation


@pytest.mark.parametrize("seed", range(int(os.environ.get("ATTENTION_CASES", "3"))))
def test_drawn_cases_match_numpy_in_float64(draw, attention_64, relative_errors, seed):
    """`ATTENTION_CASES=400 pytest -rP` runs a sweep and prints every case's errors."""
    drawn = draw(seed)
    case = cast(drawn.case, drawn.dtype)
    args = *case[:4], IntervalMask(case.start, case.stop), drawn.rotary, case.d_out
    errors = relative_errors(value_and_grads(small, drawn.soft_cap, *args), attention_64(drawn))
    print("case", seed, drawn.dtype, *(f"{e:.1e}" for e in errors))
    assert max(errors) < (5e-6 if drawn.dtype == "float32" else 2e-2)
