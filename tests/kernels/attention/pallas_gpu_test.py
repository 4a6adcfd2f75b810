import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from mmjax.kernels.attention import Rotary, attention, pallas_gpu
from mmjax.kernels.attention import mask as masks
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.reference import reference

SCALE = 0.3
interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="the Mosaic GPU interpreter is complete from jax 0.11 on"
)


@functools.cache
def interpreter(**params):
    return functools.partial(pallas_gpu.pallas_gpu, interpret=plgpu.InterpretGPUParams(**params))


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_grads(run, soft_cap, q, k, v, mask, rotary, d_out):
    """The output, and the gradients with respect to q, k and v."""
    call = functools.partial(run, mask=mask, rotary=rotary, bias=None, scale=SCALE, soft_cap=soft_cap)
    out, vjp = jax.vjp(call, q, k, v)
    return out, vjp(d_out)


def apply(run, case, rotary=None, soft_cap=None):
    mask = IntervalMask(case.start, case.stop)
    return value_and_grads(run, soft_cap, case.q, case.k, case.v, mask, rotary, case.d_out)


def cast(case, dtype):
    return case._replace(**{name: jnp.asarray(getattr(case, name), dtype) for name in ("q", "k", "v", "d_out")})


def assert_close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        size = max(float(jnp.abs(b).max()), 1)
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * size)


# (B, T, S, N, K, H), dtype, bound of the logits
CASES = [
    ((1, 150, 150, 2, 1, 32), jnp.bfloat16, None),      # two blocks of queries, keys shared by two heads
    ((1, 70, 130, 4, 2, 72), jnp.float16, 2.0),         # padded head, heads in pairs, soft cap
    ((2, 1, 40, 1, 1, 48), jnp.bfloat16, None),         # one query
    ((1, 64, 64, 1, 1, 160), jnp.bfloat16, None),       # keys and values in launches of their own
]


@interpreted
@pytest.mark.parametrize("shape, dtype, soft_cap", CASES)
def test_values_and_gradients_match(random_case, attention_loop, shape, dtype, soft_cap):
    case = cast(random_case(shape), dtype)
    got = apply(interpreter(), case, soft_cap=soft_cap)
    chex.assert_type(jax.tree.leaves(got), dtype)
    eps = float(jnp.finfo(dtype).eps)
    assert_close(got[0], attention_loop(case, SCALE, soft_cap), eps)
    assert_close(got[1], apply(reference, cast(case, jnp.float32), soft_cap=soft_cap)[1], 2 * eps)


@interpreted
def test_tiles_that_nobody_sees_are_not_read_and_nothing_races(random_case, capfd):
    """A NaN that is read shows: 0 * NaN is NaN. Queries 384 and up see nothing; the others use every buffer again."""
    t, s = 390, 448
    case = cast(random_case((1, t, s, 2, 2, 16)), jnp.bfloat16)
    hidden_key, blind = (np.arange(s) < 64) | (np.arange(s) >= 384), np.arange(t) >= 384
    k, v = (jnp.where(hidden_key[:, None, None], jnp.nan, x) for x in (case.k, case.v))
    q = jnp.where(blind[:, None, None], jnp.nan, case.q)
    start = np.where(np.arange(t) % 3, 70, 100)[None].astype(np.int32)
    case = case._replace(q=q, k=k, v=v, start=start, stop=np.where(blind, start, 380).astype(np.int32))
    out, (d_q, d_k, d_v) = jax.block_until_ready(apply(interpreter(detect_races=True), case))
    assert "RACE" not in "".join(capfd.readouterr())  # jax 0.11 only prints them
    chex.assert_tree_all_finite((out, d_q, d_k, d_v))
    for rows in (out[:, blind], d_q[:, blind], d_k[:, hidden_key], d_v[:, hidden_key]):
        np.testing.assert_array_equal(rows, 0)
    assert (out[:, ~blind] != 0).any(-1).all() and (d_k[:, 70:380] != 0).any(-1).all()


@interpreted
def test_queries_without_keys_give_exactly_zero_and_repeats_are_bit_equal(random_case):
    case = cast(random_case((1, 72, 64, 2, 2, 16)), jnp.bfloat16)
    case = case._replace(stop=np.where(np.arange(72) % 5, case.stop, case.start - 1).astype(np.int32))
    got, again = apply(interpreter(), case), apply(interpreter(), case)
    chex.assert_trees_all_equal(got, again)
    chex.assert_tree_all_finite(got)
    for rows in (got[0], got[1][0]):
        np.testing.assert_array_equal(rows[:, ::5], 0)


def places(num_tokens, first):
    """Positions of two packed documents: int32[1, T] that count up from `first`, and anew from 0 in the middle."""
    index = np.arange(num_tokens, dtype=np.int32)
    return np.where(index < num_tokens // 2, first + index, index - num_tokens // 2)[None]


@interpreted
@pytest.mark.parametrize("form", [
    dict(layout="split", rotary_dim=12, base=500.0),
    dict(layout="interleaved", xpos_scale_base=256.0, xpos_center=40),
    dict(layout="interleaved", grid=True),
])
def test_rotary_turns_queries_and_keys(random_case, form):
    positions, form = (places(140, 60), places(70, 60)), dict(form)
    if form.pop("grid", False):
        positions = (np.stack([x // 9, x % 9], -1) for x in positions)
    rotary = Rotary(*positions, **form)
    dtype = jnp.bfloat16 if rotary.xpos_scale_base else jnp.float16
    case = cast(random_case((1, 140, 70, 2, 2, 24)), dtype)
    got, want = apply(interpreter(), case, rotary), apply(reference, cast(case, jnp.float32), rotary)
    assert_close(got, want, 3 * float(jnp.finfo(dtype).eps))  # turned heads are rounded once more


def xpos_in_float64(x, positions, scale_base, side, back=False):
    """Interleaved xPos from the formula: float64[T, H] turned and scaled, or a gradient turned back and scaled."""
    dim = x.shape[-1]
    pair = np.arange(dim // 2)
    angle = positions[0, :, None] * 10_000.0 ** (-2 * pair / dim) * (-1 if back else 1)
    zeta = (2 * pair + 0.4 * dim) / (1.4 * dim)
    power = (positions[0, :, None] - np.where(positions[0, :, None] < 2**15, 0.0, positions.max())) / scale_base
    scale = zeta ** (power if side == "q" else -power)
    turned = np.asarray(x, np.float64).view(np.complex128) * np.exp(1j * angle) * scale
    return turned.view(np.float64)


def attention_in_float64(q, k, v, visible, d_out):
    """Output and gradients of single-headed float64[T, H] arrays."""
    logits = np.where(visible, SCALE * q @ k.T, -np.inf)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    out, d_weights = weights @ v, d_out @ v.T
    d_logits = SCALE * weights * (d_weights - (d_weights * weights).sum(1, keepdims=True))
    return out, (d_logits @ k, d_logits.T @ q, weights.T @ d_out)


@interpreted
@pytest.mark.parametrize("first, tolerance", [(65_536 - 75, 2), (300_000, 16)])
def test_xpos_keeps_within_bfloat16(random_case, first, tolerance):
    """One document ends at position 65,535, and the next begins in the same tile.

    From 300,000 on scales are clamped, and decays within the 64 tokens where the documents meet are lost.
    """
    t = 150
    case = cast(random_case((1, t, t, 1, 1, 32)), jnp.bfloat16)
    mask = masks.causal((np.arange(t)[None] >= t // 2) + 1)
    case = case._replace(start=np.asarray(mask.start), stop=np.asarray(mask.stop))
    positions = places(t, first)
    got = apply(interpreter(), case, Rotary(positions, positions, layout="interleaved", xpos_scale_base=512.0))

    got = jax.tree.map(lambda x: x[0, :, 0], got)
    q, k, v, d_out = (np.asarray(x, np.float64)[0, :, 0] for x in (case.q, case.k, case.v, case.d_out))
    q, k = xpos_in_float64(q, positions, 512.0, "q"), xpos_in_float64(k, positions, 512.0, "k")
    out, (d_q, d_k, d_v) = attention_in_float64(q, k, v, np.asarray(masks.to_dense(mask, t))[0], d_out)
    d_q = xpos_in_float64(d_q, positions, 512.0, "q", back=True)
    d_k = xpos_in_float64(d_k, positions, 512.0, "k", back=True)
    assert_close(got, (out, (d_q, d_k, d_v)), tolerance * float(jnp.finfo(jnp.bfloat16).eps))


HEAD_DIMS = (16, 32, 64, 72, 80, 88, 96, 112, 128, 160, 256)
TOLERANCE = {"bfloat16": 2e-2, "float16": 3e-3}


@interpreted
@pytest.mark.parametrize("seed", range(int(os.environ.get("ATTENTION_CASES", "2"))))
def test_drawn_cases_match_numpy_in_float64(draw, attention_64, relative_errors, seed):
    """`ATTENTION_CASES=400 pytest -rP` runs a sweep and prints every case's errors."""
    drawn = draw(seed, tuple(TOLERANCE), HEAD_DIMS, biased=False, longest=200)
    if pallas_gpu.refuse_anywhere(*drawn_arrays(drawn)[:3], rotary=drawn.rotary, bias=None):    # xPos in some forms
        drawn = drawn._replace(rotary=None)
    q, k, v, d_out = drawn_arrays(drawn)
    mask = IntervalMask(drawn.case.start, drawn.case.stop)
    got = value_and_grads(interpreter(), drawn.soft_cap, q, k, v, mask, drawn.rotary, d_out)
    out, grads = attention_64(drawn)
    errors = relative_errors(got, (out, grads[:3]))
    print("case", seed, drawn.dtype, *(f"{e:.1e}" for e in errors))
    assert max(errors) < TOLERANCE[drawn.dtype]


def drawn_arrays(drawn):
    return [jnp.asarray(getattr(drawn.case, name), drawn.dtype) for name in ("q", "k", "v", "d_out")]


T = 700
SEGMENTS = np.array([[1] * 300 + [2] * 57 + [3] * 220 + [0] * 123, [1] * T], np.int32)
IMAGES = np.sort(np.random.default_rng(0).integers(-1, 5, (2, T), np.int32), axis=1)
JUMPING = np.array([[-1] * 9 + [0] * 70 + [4] * 400 + [2] * 221] * 2, np.int32)  # two images in a block; one read again

# mask, S
MASKS = {
    "causal": (masks.causal(SEGMENTS), T),
    "full": (masks.full(SEGMENTS), T),
    "prefix": (masks.prefix(SEGMENTS, 90), T),
    "sliding_window": (masks.sliding_window(SEGMENTS, 50), T),
    "left_padded": (masks.left_padded(np.array([0, 411]), T), T),
    "per_image": (masks.per_image(IMAGES, 64), 320),
    "per_image_jumping": (masks.per_image(JUMPING, 64), 320),
    "all_keys": (masks.all_keys(2, T, np.array([50, 301])), 310),
}


@pytest.mark.quick
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("name", MASKS)
def test_tiles_visited_are_the_fewest_possible(name, head_dim):
    mask, s = MASKS[name]
    dense = np.asarray(masks.to_dense(mask, s))
    sizes = pallas_gpu.sizes(T, s, 2, head_dim)
    keys = 64 if sizes.pair_heads else 128
    blocks = (128, sizes.forward.size), (128, sizes.backward_queries.size), (sizes.backward_keys.size, keys)
    for tiles, (rows, columns) in zip(pallas_gpu.tile_lists(mask, s, sizes), blocks, strict=True):
        padded = np.pad(dense, ((0, 0), (0, -T % rows), (0, -s % columns)))
        fewest = padded.reshape(2, -1, rows, padded.shape[2] // columns, columns).any((2, 4)).sum()
        assert tiles.count.sum() == fewest


def test_small_images_are_tiles_of_their_own():
    """Flamingo: 2,048 tokens and 5 images of 64; a text tile of one image is 1/5 of the keys."""
    sizes = pallas_gpu.sizes(2048, 320, 8, 128)
    assert sizes.forward.size == sizes.backward_queries.size == 64 and sizes.pair_heads


@pytest.mark.parametrize("change, reason", [
    (dict(dtype=jnp.float32), "q float32, k float32 and v float32 must all be bfloat16 or all float16"),
    (dict(dtype=jnp.float16, rotary=Rotary(None, None, xpos_scale_base=512.0)), "leave the range of float16"),
    (dict(h=8), "head_dim=8 must be from 16 to 256"),
    (dict(h=264), "head_dim=264 must be from 16 to 256"),
    (dict(bias=0), "it has no bias"),
    (dict(t=0), "q [1, 0, 2, 64] and k [1, 5, 2, 64] have nothing"),
])
def test_says_what_it_refuses(change, reason):
    call = dict(t=4, h=64, dtype=jnp.bfloat16, rotary=None, bias=None) | change
    q, k = (jnp.zeros((1, length, 2, call["h"]), call["dtype"]) for length in (call["t"], 5))
    assert reason in pallas_gpu.refuse_anywhere(q, k, k, rotary=call["rotary"], bias=call["bias"])


def test_is_refused_without_a_gpu():
    x = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 9.x \(Hopper\), there is no GPU"):
        attention(x, x, x, mask=masks.all_keys(1, 4, 4), implementation="pallas_gpu")


# FORM,HEAD_DIM,T,S,N,K: self-attention, Flamingo's cross-attention, padding, one buffer, widest that turn, soft cap
COMPILED = [
    "plain,64,2048,2048,16,16",
    "plain,128,2048,2048,32,8",
    "plain,128,2048,320,64,64",
    "plain,72,257,257,16,16",
    "plain,256,512,512,8,1",
    "rotary,128,2048,2048,16,8",
    "xpos,64,2048,2048,32,32",
    "soft_cap,128,2048,2048,8,4",
]


def test_compiles_for_an_h200_without_spills(tmp_path):
    """In a process of its own: an architecture is fixed when a process first compiles for a GPU."""
    pytest.importorskip("jax_cuda13_plugin", reason="the CUDA plugin compiles without a GPU; it is not installed")
    root = Path(__file__).parents[3]
    command = [sys.executable, Path(__file__).with_name("compile_hopper.py"), *COMPILED]
    env = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": "", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        for kernel in json.loads(line)["kernels"]:
            assert kernel["spilled_bytes"] == 0, line
            assert kernel["registers"] <= 168, line             # of 384 threads; more do not fit on an SM
            assert kernel["shared_bytes"] <= 227 * 1024, line
            assert kernel["wgmma"] >= 8 and kernel["bulk_copies"] > 0, line
    assert len(done.stdout.splitlines()) == len(COMPILED)
