"""Random cases of cross-entropy, their value as a loop over tokens in NumPy float64, and small chunks."""

from typing import NamedTuple

import numpy as np
import pytest

from mmjax.kernels.cross_entropy import chunked


class Case(NamedTuple):
    """Arguments of cross_entropy, matrix [V, D]."""

    hidden: np.ndarray
    matrix: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def random_case(b, t, d, v, seed=0) -> Case:
    rng = np.random.default_rng(seed)
    draw = lambda *dims: rng.standard_normal(dims, np.float32)  # noqa: E731
    weights = rng.random((b, t), np.float32) * (rng.random((b, t)) > 0.3)
    case = Case(draw(b, t, d), draw(v, d), rng.integers(0, v, (b, t), np.int32), weights)
    case.targets[:, ::3] = (case.hidden @ case.matrix.T).argmax(-1)[:, ::3]       # some hits
    return case


def by_hand(case: Case):
    """(loss, hits, d_hidden, d_matrix, d_weights) one token after the other."""
    x, matrix, weights = (np.asarray(a, np.float64) for a in (case.hidden, case.matrix, case.weights))
    loss, hits, d_x, d_matrix, losses = 0.0, 0.0, np.zeros(x.shape), np.zeros(matrix.shape), np.zeros(weights.shape)
    for i in np.ndindex(weights.shape):
        logits = matrix @ x[i]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        losses[i] = -np.log(p[case.targets[i]])
        loss, hits = loss + weights[i] * losses[i], hits + weights[i] * (logits.argmax() == case.targets[i])
        p[case.targets[i]] -= 1
        d_x[i] = weights[i] * p @ matrix
        d_matrix += weights[i] * np.outer(p, x[i])
    return loss, hits, d_x, d_matrix, losses


@pytest.fixture(name="random_case", scope="session")
def _random_case():
    return random_case


@pytest.fixture(name="by_hand", scope="session")
def _by_hand():
    return by_hand


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of at most 5 tokens."""
    monkeypatch.setattr(chunked, "LEAST_TOKENS", 5)
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)
