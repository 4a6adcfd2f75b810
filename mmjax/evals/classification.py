"""Close-ended tasks: the answer is the candidate the model finds most likely."""

from collections.abc import Sequence

import numpy as np

from mmjax.decoding import score_candidates
from mmjax.evals.config import EvalConfig
from mmjax.evals.prompts import Prompt, Writer
from mmjax.models.interface import Model, Params


def score_labels(model: Model, params: Params, writer: Writer, prompts: Sequence[Prompt],
                 labels: Sequence[Sequence[str]], config: EvalConfig) -> np.ndarray:
    """Log-likelihood of every label after every prompt.

    Args:
        model, params: the system.
        writer: how text becomes tokens.
        prompts: N prompts.
        labels: the candidates of each prompt; the numbers may differ.
        config: for the sizes of batches.

    Returns:
        float32[N, C] for the largest number of candidates C, -inf where a prompt has fewer.
    """
    known = {own: writer.candidates(own) for own in set(map(tuple, labels))}
    count, longest = max(map(len, known.values())), max(len(ids) for own in known.values() for ids in own)
    scores = []
    for where, batch in writer.batches(prompts, config.batch_size):
        rows = np.minimum(np.arange(where.start, where.start + config.batch_size), len(prompts) - 1)
        tokens, lengths = _pad([known[tuple(labels[i])] for i in rows], count, longest)
        got = score_candidates(model, params, batch, tokens, np.maximum(lengths, 1), config.labels_together)
        scores.append(np.where(lengths > 0, np.asarray(got), -np.inf)[:where.stop - where.start])
    return np.concatenate(scores)


def _pad(candidates: Sequence[Sequence[Sequence[int]]], count: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32[B, count, longest] and lengths int32[B, count], both 0 where nothing is."""
    shape = (len(candidates), count, longest)
    tokens, lengths = np.zeros(shape, np.int32), np.zeros(shape[:2], np.int32)
    for i, own in enumerate(candidates):
        for j, ids in enumerate(own):
            tokens[i, j, :len(ids)], lengths[i, j] = ids, len(ids)
    return tokens, lengths
