"""Decoding attention against NumPy float64, row by row and head by head."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from mmjax.kernels.attention import IntervalMask, Rotary, rotate
from mmjax.kernels.decode import api, cached_attention, decode_attention
from mmjax.kernels.decode.pallas_tpu import _Form, list_steps, pallas_tpu

RUNS = {
    "reference": api.reference,
    "one block a page": functools.partial(pallas_tpu, interpret=True),
    "blocks": functools.partial(pallas_tpu, interpret=True, block_elements=1),      # of 128 keys
}
# B, N, K, H, pages of a row, keys of a page
SHAPES = [(5, 4, 2, 8, 3, 7), (4, 3, 1, 5, 1, 300), (3, 2, 2, 16, 2, 130)]


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.setattr(api, "IMPLEMENTATIONS", RUNS)


def random_case(shape, dtype=np.float32, seed=0):
    """Pages in random order, one of them nobody's; intervals of all kinds, the first two rows' empty and whole."""
    b, n, kv, h, c, z = shape
    rng = np.random.default_rng(seed)
    draw = lambda *dims: jnp.asarray(rng.standard_normal(dims, np.float32), dtype)  # noqa: E731
    start = rng.integers(-2, c * z // 2, b)
    stop = start + rng.integers(1, c * z, b)
    start[:2], stop[:2] = (5, 0), (5, c * z)
    table = rng.permutation(b * c + 1)[:b * c].reshape(b, c).astype(np.int32)
    mask = IntervalMask(*(x[:, None].astype(np.int32) for x in (start, stop)))
    return draw(b, n, h), draw(b * c + 1, z, kv * h), draw(b * c + 1, z, kv * h), table, mask


def by_hand(q, k_pages, v_pages, table, mask, scale, soft_cap=None):
    q, k_pages, v_pages = (np.asarray(x, np.float64) for x in (q, k_pages, v_pages))
    (b, n, h), out = q.shape, np.zeros(q.shape)
    group = n // (k_pages.shape[2] // h)
    for row, head in np.ndindex(b, n):
        seen = slice(max(mask.start[row, 0], 0), max(mask.stop[row, 0], 0))
        columns = slice(head // group * h, (head // group + 1) * h)
        k, v = (np.concatenate(x[table[row]])[seen, columns] for x in (k_pages, v_pages))
        if len(k):
            logits = scale * k @ q[row, head]
            logits = logits if soft_cap is None else soft_cap * np.tanh(logits / soft_cap)
            weights = np.exp(logits - logits.max())
            out[row, head] = weights @ v / weights.sum()
    return out


@pytest.mark.quick
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RUNS)
def test_values_match_a_loop(runs, name, shape, dtype, tolerance):
    *arrays, mask = random_case(shape, dtype)
    got = decode_attention(*arrays, mask=mask, scale=0.3, soft_cap=2.0, implementation=name)
    assert got.dtype == dtype
    want = by_hand(*arrays, mask, 0.3, 2.0)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=tolerance)
    assert not np.any(got[0])


@pytest.mark.parametrize("name", [name for name in RUNS if name != "reference"])
def test_what_no_interval_reaches_may_be_nan(runs, name):
    q, k, v, table, mask = random_case(SHAPES[2])
    want = decode_attention(q, k, v, table, mask=mask, implementation="reference")
    position = np.arange(2 * 130)
    hidden = (position < mask.start) | (position >= mask.stop)
    k, v = np.array(k), np.array(v)
    k[-1] = v[-1] = np.nan
    for row in range(3):
        for page in range(2):
            at = hidden[row, page * 130:(page + 1) * 130]
            k[table[row, page], at] = v[table[row, page], at] = np.nan
    got = decode_attention(q, k, v, table, mask=mask, implementation=name)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_in_the_tpu_interpreter_without_races():
    """Scratch and what lies behind an array start as NaN there, and copies finish when they are waited for."""
    *arrays, mask = random_case(SHAPES[2])
    options = dict(detect_races=True, on_race="raise")      # raises from 0.12 on; before, the option is not there
    known = inspect.signature(pltpu.InterpretParams).parameters
    interpret = pltpu.InterpretParams(**{name: x for name, x in options.items() if name in known})
    got = pallas_tpu(*arrays, mask, scale=0.3, soft_cap=None, block_elements=1, interpret=interpret)
    np.testing.assert_allclose(got, by_hand(*arrays, mask, 0.3), rtol=0, atol=2e-6)


def test_only_blocks_inside_the_intervals_are_read():
    form = _Form(page=10, block=4, per_page=3, num_pages=2, scale=1.0, soft_cap=None)
    steps = list_steps(np.array([0, 5, 9, 3]), np.array([20, 5, 11, 4]), form)
    count = int(steps.count[0])
    assert list(zip(steps.row[:count].tolist(), steps.block[:count].tolist(), strict=True)) == [
        *[(0, block) for block in range(6)], (1, 0), (2, 2), (2, 3), (3, 0)]


def test_rotary_turns_the_queries_alone():
    q, k, v, table, mask = random_case(SHAPES[0])
    positions = np.array([[3], [1], [4], [1], [5]], np.int32)
    turned = rotate(q[:, None], positions, layout="interleaved")[:, 0]
    got = decode_attention(q, k, v, table, mask=mask, rotary=Rotary(positions, positions, layout="interleaved"))
    np.testing.assert_allclose(got, by_hand(turned, k, v, table, mask, 8**-0.5), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["reference", "one block a page"])
def test_a_layer_of_a_cache_on_a_mesh(runs, name, kind):
    rng = np.random.default_rng(0)
    q, (k, v) = rng.standard_normal((4, 4, 8), np.float32), rng.standard_normal((2, 3, 4, 9, 16), np.float32)
    mask = IntervalMask(np.zeros((4, 1), np.int32), np.array([[9], [3], [0], [5]], np.int32))
    want = by_hand(q, k[1], v[1], np.arange(4)[:, None], mask, 8**-0.5)
    run = jax.jit(functools.partial(cached_attention, implementation=name))
    np.testing.assert_allclose(run(q, k, v, 1, mask=mask), want, rtol=0, atol=2e-6)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        got = jax.block_until_ready(run(q, k, v, 1, mask=mask))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("changes, words", [
    (dict(q=np.zeros((5, 8), np.float32)), r"q \[5, 8\]"),
    (dict(q=np.zeros((5, 4, 6), np.float32)), "must have K·H features with H=6"),
    (dict(q=np.zeros((5, 3, 8), np.float32)), "K a divisor of N=3"),
    (dict(table=np.zeros((4, 3), np.int32)), r"page_table \[4, 3\] must be.*B=5 rows"),
    (dict(mask=IntervalMask(*np.zeros((2, 5, 2), np.int32))), r"mask \[5, 2\] \[B, 1\]"),
    (dict(implementation="flash"), "implementation='flash' must be None or one of pallas_tpu, reference"),
])
def test_bad_arguments_are_named(changes, words):
    arguments = dict(zip(("q", "k_pages", "v_pages", "table", "mask"), random_case(SHAPES[0]), strict=True)) | changes
    arrays = [arguments.pop(name) for name in ("q", "k_pages", "v_pages", "table")]
    with pytest.raises(ValueError, match=words):
        decode_attention(*arrays, **arguments)
