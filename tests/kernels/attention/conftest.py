"""Random cases of attention, and attention as a loop over queries in NumPy float64."""

from typing import NamedTuple

import numpy as np
import pytest


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
