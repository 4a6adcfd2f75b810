import math

import numpy as np
import pytest

from mmjax.evals.cider import cider_d

# Scored by pycocoevalcap 1.2 (Cider, n=4, sigma=6) on the same words.
CAPTIONS = ("a man riding a wave on a surfboard", "two red stars and one blue ring", "a cat",
            "a dog runs in the park and the dog runs in the park", "zebra zebra zebra zebra zebra", "")
REFERENCES = (("a man riding a wave on top of a surfboard", "a surfer rides a large wave in the ocean"),
              ("two red stars and one blue ring",),
              ("a black cat sits on the mat", "the cat is on a mat", "a cat on a mat"),
              ("a dog runs in the park",), ("a zebra stands in the grass", "two zebras in a field"),
              ("a man in a red hat", "a dog in a park"))
GOLDEN = (3.399877009678482, 10.0, 1.4907727390367655, 2.381249171567659, 0.1397444119169999, 0.0)


@pytest.mark.quick
def test_scores_are_those_of_pycocoevalcap():
    np.testing.assert_allclose(cider_d(CAPTIONS, REFERENCES), GOLDEN, rtol=1e-12, atol=0)


def test_one_word_by_hand():
    # Every word stands with one of two pictures, so every weight is log 2; "b b" is clipped to one b, and the cosine
    # of [2 log 2] and [log 2] is then 1/2; one word of difference; three of the four n have no n-gram in common.
    scores = cider_d(["b b", "c"], [["b"], ["c"]])
    np.testing.assert_allclose(scores, [10 / 4 * 0.5 * math.exp(-1 / 72), 10 / 4], rtol=1e-12)


def test_what_every_picture_is_called_counts_nothing():
    np.testing.assert_array_equal(cider_d(["a picture", "a picture"], [["a picture"], ["a picture"]]), [0, 0])


def test_refuses_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="2 captions and 1 lists"):
        cider_d(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="no list may be empty"):
        cider_d(["a"], [[]])
