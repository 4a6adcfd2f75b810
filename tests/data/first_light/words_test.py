import numpy as np
import pytest

from mmjax.data.first_light import words


def test_labels_of_a_page_differ_in_their_first_letter():
    rng = np.random.default_rng(0)
    drawn = [words.draw_labels(words.WORDS, 4, rng) for _ in range(200)]
    assert all(len({w[0] for w in page}) == len(page) == 4 for page in drawn)
    assert {w for page in drawn for w in page} == set(words.WORDS)


def test_words_are_different():
    assert len(set(words.WORDS)) == len(words.WORDS)


@pytest.mark.parametrize("labels", [("dax", "dop", "wug"), ("dax", "wug", "")])
def test_too_small_a_vocabulary(labels):
    with pytest.raises(ValueError, match="2 different first letters; pages of 3 classes need at least 3"):
        words.draw_labels(labels, 3, np.random.default_rng(0))
