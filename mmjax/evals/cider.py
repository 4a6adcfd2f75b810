"""CIDEr-D: how close captions are to what people wrote, by the n-grams that tell pictures apart."""

import collections
import math
from collections.abc import Sequence

import numpy as np

from mmjax.evals.words import words

MAX_N = 4
SIGMA = 6.0         # of the penalty on a difference in length, in words

Ngram = tuple[str, ...]


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Scores captions against references; the score of a system is the mean.

    The document frequencies come from the references given, one document per picture, so a score belongs to its set
    of pictures: with a single one all weights, and the score, are 0.

    Args:
        captions: N captions.
        references: for each of them the captions that people wrote, at least one.

    Returns:
        float64[N], 0 to 10.

    Raises:
        ValueError: if the numbers differ, or a picture has no reference.

    Source: arXiv:1411.5726, equations 1 to 3, and appendix B with the clipped, length-penalised CIDEr-D, whose
    mean over n and factor of 10 it keeps. No stemming, as in the COCO evaluation server.
    """
    if len(captions) != len(references) or not all(references):
        raise ValueError(f"{len(captions)} captions and {len(references)} lists of references must be as many, and no "
                         "list may be empty")
    counts = [[_ngrams(words(text)) for text in texts] for texts in references]
    frequency = collections.Counter(g for document in counts for g in set().union(*document))
    idf = {g: math.log(len(counts)) - math.log(n) for g, n in frequency.items()}
    unseen = math.log(len(counts))
    return np.array([_score(_ngrams(words(caption)), document, idf, unseen)
                     for caption, document in zip(captions, counts, strict=True)])


def _ngrams(tokens: list[str]) -> collections.Counter[Ngram]:
    """Counts of all 1- to 4-grams."""
    return collections.Counter(tuple(tokens[i:i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))


def _score(caption: collections.Counter[Ngram], references: list[collections.Counter[Ngram]], idf: dict[Ngram, float],
           unseen: float) -> float:
    """10 times the mean over n and references of the penalised, clipped cosine of the tf-idf vectors."""
    vector, norms, length = _weigh(caption, idf, unseen)
    total = 0.0
    for reference in references:
        other, other_norms, other_length = _weigh(reference, idf, unseen)
        products = np.zeros(MAX_N)
        for g in vector.keys() & other.keys():
            products[len(g) - 1] += min(vector[g], other[g]) * other[g]
        scale = norms * other_norms
        cosines = np.divide(products, scale, out=np.zeros(MAX_N), where=scale > 0)
        total += cosines.mean() * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))
    return 10 * total / len(references)


def _weigh(counts: collections.Counter[Ngram], idf: dict[Ngram, float], unseen: float
           ) -> tuple[dict[Ngram, float], np.ndarray, int]:
    """tf-idf weight of each n-gram, their norms float64[4] by n, and the number of words."""
    vector = {g: count * idf.get(g, unseen) for g, count in counts.items()}
    squares = np.zeros(MAX_N)
    for g, weight in vector.items():
        squares[len(g) - 1] += weight**2
    return vector, np.sqrt(squares), sum(count for g, count in counts.items() if len(g) == 1)
