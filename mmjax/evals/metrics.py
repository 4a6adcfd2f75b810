"""Metrics as pure functions of what a model said and what is right."""

from collections.abc import Sequence

import numpy as np

from mmjax.evals.words import words


def accuracy(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of rows whose highest score is the right candidate's; the first of equal ones counts.

    Args:
        scores: float[N, C].
        truth: int[N] index of the right candidate.
    """
    return float(np.mean(np.argmax(scores, axis=1) == truth))


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """bool[N]: whether an answer has the words of one of its references, case and punctuation aside."""
    return np.array([words(a) in [words(r) for r in right] for a, right in zip(answers, references, strict=True)], bool)
