"""MinHash against exact Jaccard similarities."""

import numpy as np
import pytest

from data_pipelines import minhash, words

pytestmark = pytest.mark.quick


def shingles(w: list[str]) -> set:
    return set(zip(*(w[k:] for k in range(5)), strict=False))


def jaccard(a: list[str], b: list[str]) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def pair(rng, changed: int, n: int = 300) -> tuple[list[str], list[str]]:
    a = [f"w{k}" for k in rng.integers(10_000, size=n)]
    b = list(a)
    for k in rng.choice(n, changed, replace=False):
        b[k] = "other"
    return a, b


@pytest.mark.parametrize("changed", [0, 2, 10, 40, 300])
def test_similarity_is_near_the_exact_one(changed):
    rng = np.random.default_rng(changed)
    errors = []
    for _ in range(20):
        a, b = pair(rng, changed)
        errors.append(minhash.similarity(minhash.signature(a)[0], minhash.signature(b)[0]) - jaccard(a, b))
    assert abs(np.mean(errors)) < 0.03 and np.abs(errors).max() < 0.18      # 4 standard errors of one: 0.177


def test_similar_texts_meet_in_a_band_and_others_do_not():
    rng = np.random.default_rng(0)
    meetings = {changed: 0 for changed in (1, 200)}
    for changed in meetings:
        for _ in range(20):
            a, b = (set(minhash.split_bands(minhash.signature(w)[1])) for w in pair(rng, changed))
            meetings[changed] += bool(a & b)
    assert meetings == {1: 20, 200: 0}


def test_of_texts_that_meet_the_first_key_stays_whatever_the_order():
    rng = np.random.default_rng(1)
    a, b = pair(rng, 2)
    c, _ = pair(rng, 0)
    met = [(key, minhash.signature(w)[0]) for key, w in (("2", a), ("1", b), ("0", c), ("3", a))]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        assert list(minhash.losers([met[i] for i in order], 0.8)) == ["2", "3"]


@pytest.mark.parametrize("text", ["one", "one two", "東京", "one two three four five"])
def test_short_texts_have_signatures(text):
    sig, bands = minhash.signature(words.words(text))
    assert len(sig) == 128 and len(bands) == 128 and len(set(minhash.split_bands(bands))) == 16


def test_words_of_scripts_with_and_without_spaces():
    assert words.words("Déjà-vu, it's 3: 東京タワー") == ["déjà", "vu", "it", "s", "3", *"東京タワー"]


def test_repetition_is_the_share_of_runs_seen_before():
    w = list("abcdefg")
    assert words.repetition(w) == 0
    assert words.repetition(w * 2) == pytest.approx(3 / 10)
    assert words.repetition(["a"] * 9) == pytest.approx(4 / 5)
    assert words.repetition(w[:4]) == 0
