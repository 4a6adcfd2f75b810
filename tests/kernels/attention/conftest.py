"""Random cases of attention, and attention as a loop over queries in NumPy float64."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import Rotary
from mmjax.kernels.attention import mask as masks


class Case(NamedTuple):
    """Arguments of attention, and a cotangent of its output."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    bias: np.ndarray | None
    start: np.ndarray
    stop: np.ndarray
    d_out: np.ndarray


def random_case(shape, bias_rows=0, seed=0) -> Case:
    """Shape is (B, T, S, N, K, H). Intervals are unordered; some are empty, some reach past either end."""
    b, t, s, n, k, h = shape
    rng = np.random.default_rng(seed)
    draw = lambda *dims: rng.standard_normal(dims, np.float32)  # noqa: E731
    start = rng.integers(-3, s // 2 + 1, (b, t), np.int32)
    stop = start + rng.integers(-1, s + 3, (b, t), np.int32)
    bias = draw(bias_rows, n, t, s) if bias_rows else None
    return Case(draw(b, t, n, h), draw(b, s, k, h), draw(b, s, k, h), bias, start, stop, draw(b, t, n, h))


def attention_loop(case: Case, scale: float, soft_cap: float | None = None) -> np.ndarray:
    """float64[B, T, N, H]: the definition, one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (case.q, case.k, case.v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = slice(max(case.start[b, t], 0), max(case.stop[b, t], 0))
        head = n // (q.shape[2] // k.shape[2])
        keys, values = k[b, seen, head], v[b, seen, head]
        if len(keys):
            logits = scale * keys @ q[b, t, n]
            if case.bias is not None:
                logits += case.bias[b % len(case.bias), n, t, seen]
            if soft_cap is not None:
                logits = soft_cap * np.tanh(logits / soft_cap)
            weights = np.exp(logits - logits.max())
            out[b, t, n] = weights @ values / weights.sum()
    return out


@pytest.fixture(name="random_case", scope="session")
def _random_case():
    return random_case


@pytest.fixture(name="attention_loop", scope="session")
def _attention_loop():
    return attention_loop


class Drawn(NamedTuple):
    """A call of attention drawn at random; arrays are float32 that hold numbers of `dtype`."""

    case: Case
    rotary: Rotary | None
    scale: float
    soft_cap: float | None
    dtype: str


def draw(seed: int, dtypes=("float32", "bfloat16"), head_dims=(8, 20, 32, 64, 72, 88, 96, 112, 128, 256), biased=True,
         longest=300) -> Drawn:
    """Case number `seed`. Forms and shapes repeat after 30, so that a long sweep compiles little; the rest does not.

    Two thirds are self-attention, with the masks of that.
    """
    form, rng = np.random.default_rng(seed % 30), np.random.default_rng(seed)
    k, group, h = form.integers(1, 3), form.integers(1, 4), head_dims[seed % 30 % len(head_dims)]
    b, t, crosses = form.integers(1, 3), min(form.choice([1, 64, 129, 200, 300]), longest), form.integers(3) == 0
    s = form.choice([5, 48, 64, 100, 150, 200]) if crosses else t
    dtype, soft_cap = form.choice(dtypes), form.choice([None, None, 2.0])
    bias_rows = form.choice([0, 0, 1, b]) if biased else 0
    turns = ["none", "split", "interleaved", "partial", "grid", "xpos"][seed % 6]
    if turns == "xpos" and dtype == "float16":
        dtype = "bfloat16"      # no kernel scales float16
    case = random_case((b, t, s, k * group, k, h), bias_rows, seed)
    kind = rng.choice(["random", "images"] if crosses else ["random", "causal", "full", "prefix", "window", "left"])
    if kind != "random":
        segments = np.sort(rng.integers(1, 5, (b, t)), 1) % 4      # documents 1 to 3, then padding
        mask = {
            "causal": lambda: masks.causal(segments),
            "full": lambda: masks.full(segments),
            "prefix": lambda: masks.prefix(segments, int(rng.integers(1, 9))),
            "window": lambda: masks.sliding_window(segments, int(rng.integers(1, 40))),
            "images": lambda: masks.per_image(np.sort(rng.integers(-1, 4, (b, t)), 1), max(s // 4, 1)),
            "left": lambda: masks.left_padded(rng.integers(0, t + 1, b), t),
        }[kind]()
        case = case._replace(start=np.asarray(mask.start), stop=np.asarray(mask.stop))
    rounded = {n: np.asarray(jnp.asarray(getattr(case, n), dtype), np.float32) for n in ("q", "k", "v", "d_out")}
    return Drawn(case._replace(**rounded), _draw_rotary(turns, rng, b, t, s, h), 0.3, soft_cap, str(dtype))


def _draw_rotary(kind: str, rng, b: int, t: int, s: int, h: int) -> Rotary | None:
    if kind == "none":
        return None
    axes = (2,) if kind == "grid" else ()
    first = rng.integers(0, 1000, (b, 1, *axes))
    q, k = (np.cumsum(rng.integers(0, 3, (b, n, *axes)), 1) + first for n in (t, s))
    return Rotary(
        q.astype(np.int32), k.astype(np.int32), layout="split" if kind in ("split", "partial") else "interleaved",
        rotary_dim=h // 4 * 2 if kind == "partial" else None, xpos_scale_base=256.0 if kind == "xpos" else None)


def attention_64(drawn: Drawn):
    """Output and gradients of q, k, v and bias (None without one) in NumPy float64."""
    case, rotary = drawn.case, drawn.rotary
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (case.q, case.k, case.v, case.d_out))
    (b, _, n, h), (s, num_kv_heads) = q.shape, k.shape[1:3]
    if rotary is not None:
        q, k = _turn(q, rotary, rotary.q_positions, 1), _turn(k, rotary, rotary.k_positions, -1)
    k, v = (np.repeat(x, n // num_kv_heads, 2) for x in (k, v))
    logits = drawn.scale * np.einsum("btnh,bsnh->bnts", q, k) + (0 if case.bias is None else case.bias)
    slope = 1.0
    if drawn.soft_cap is not None:
        logits = drawn.soft_cap * np.tanh(logits / drawn.soft_cap)
        slope = 1 - (logits / drawn.soft_cap) ** 2
    visible = (case.start[..., None] <= np.arange(s)) & (np.arange(s) < case.stop[..., None])
    logits = np.where(visible[:, None], logits, -np.inf)
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    weights /= np.where(total == 0, 1, total)
    out = np.einsum("bnts,bsnh->btnh", weights, v)
    d_weights = np.einsum("btnh,bsnh->bnts", d_out, v)
    d_logits = slope * weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    d_q = drawn.scale * np.einsum("bnts,bsnh->btnh", d_logits, k)
    d_k, d_v = (np.einsum("bnts,btnh->bsnh", x, y) for x, y in ((drawn.scale * d_logits, q), (weights, d_out)))
    d_k, d_v = (x.reshape(b, s, num_kv_heads, -1, h).sum(3) for x in (d_k, d_v))
    if rotary is not None:
        d_q = _turn(d_q, rotary, rotary.q_positions, 1, back=True)
        d_k = _turn(d_k, rotary, rotary.k_positions, -1, back=True)
    d_bias = d_logits if case.bias is None or len(case.bias) == b else d_logits.sum(0, keepdims=True)
    return out, (d_q, d_k, d_v, None if case.bias is None else d_bias)


def _turn(x, rotary: Rotary, positions, sign: int, back: bool = False):
    """Heads turned and scaled, or the gradient of heads from that of turned ones."""
    dim = rotary.rotary_dim or x.shape[-1]
    places = positions.reshape(*positions.shape[:2], -1, 1).astype(np.float64)
    axes = places.shape[2]
    angle = places * rotary.base ** (-2.0 * axes * np.arange(dim // 2 // axes) / dim)
    angle = angle.reshape(*positions.shape[:2], 1, dim // 2) * (-1 if back else 1)
    factor = 1.0
    if rotary.xpos_scale_base is not None:
        zeta = (2 * np.arange(dim // 2) + 0.4 * dim) / (1.4 * dim)
        factor = zeta ** (sign * places / rotary.xpos_scale_base)
    halves, pairs = (slice(0, dim // 2), slice(dim // 2, dim)), (slice(0, dim, 2), slice(1, dim, 2))
    at = halves if rotary.layout == "split" else pairs
    a, b = (x[..., i] for i in at)
    x = x.copy()
    x[..., at[0]] = (a * np.cos(angle) - b * np.sin(angle)) * factor
    x[..., at[1]] = (b * np.cos(angle) + a * np.sin(angle)) * factor
    return x


def relative_errors(got, want) -> list[float]:
    """Largest error of the output over its largest number, then of each gradient over that of all gradients (or 1).

    Where one key is visible, gradients of q and k are 0, the difference of numbers as large as those of v.
    """
    errors = []
    for arrays, truths in zip(((got[0],), got[1]), ((want[0],), want[1]), strict=True):
        pairs = [(np.asarray(a, np.float64), true) for a, true in zip(arrays, truths, strict=True) if a is not None]
        size = max(1, *(np.abs(true).max() for _, true in pairs))
        errors += [np.abs(a - true).max() / size for a, true in pairs]
    return errors


@pytest.fixture(name="relative_errors", scope="session")
def _relative_errors():
    return relative_errors


@pytest.fixture(name="draw", scope="session")
def _draw():
    return draw


@pytest.fixture(name="attention_64", scope="session")
def _attention_64():
    return attention_64
