import numpy as np

from mmjax.evals import metrics


def test_accuracy():
    scores = np.array([[-1.0, -2.0, -np.inf], [-5.0, -4.0, -3.0], [-1.0, -1.0, -2.0], [-3.0, -2.0, -1.0]])
    assert metrics.accuracy(scores, np.array([0, 2, 1, 0])) == 0.5


def test_exact_match_ignores_case_and_punctuation_but_not_words():
    got = metrics.exact_match(["Two red stars.", "two stars", "", "a cat"],
                              [["two red stars"], ["two red stars"], ["a"], ["a dog", "A cat!"]])
    assert got.dtype == bool and got.tolist() == [True, False, False, True]
