import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.decoding import beam_search, generate

NEW, STOP, VOCAB = 3, 2, 6


class Bigram(NamedTuple):
    """A language model whose next token depends on the last one alone; prompts end in token 0."""

    probabilities: tuple[tuple[float, ...], ...]

    def prefill(self, params, batch, max_len):
        return self._logits(batch.tokens), BigramCache(jnp.full(batch.tokens.shape[:1], batch.tokens.shape[1]))

    def decode(self, params, tokens, cache):
        return self._logits(tokens), cache

    def _logits(self, tokens):
        return jnp.log(jnp.array(self.probabilities))[tokens]


class BigramCache(NamedTuple):
    lengths: jax.Array

    def take(self, rows):
        return BigramCache(self.lengths[rows])


def search(system, **options):
    beams = beam_search(system.model, system.params, system.prompts, max_new_tokens=NEW, **options)
    return [[(tuple(t[:n].tolist()), s) for t, n, s in zip(*row, strict=True) if np.isfinite(s)]
            for row in zip(*map(np.asarray, beams), strict=True)]


@functools.cache
def every_continuation(system):
    """(text, length with the stop token, log-likelihood) of all there are, for each prompt."""
    found = [[], [], []]
    others = [v for v in range(VOCAB) if v != STOP]
    for n in range(NEW + 1):
        for text in itertools.product(others, repeat=n):
            whole = [*text, STOP] if n < NEW else [*text]
            for b, logp in enumerate(system.log_probs([whole] * 3)):
                found[b].append((text, len(whole), sum(logp[i, token] for i, token in enumerate(whole))))
    return found


def exhaustive(system, length_penalty):
    """Every continuation of each prompt with its score, best first."""
    scored = [[(text, total / n**length_penalty) for text, n, total in row] for row in every_continuation(system)]
    return [sorted(row, key=lambda pair: -pair[1]) for row in scored]


def beam_by_hand(system, b, num_beams, length_penalty):
    """The best continuation of prompt b by a beam search over Python lists."""
    live, done = [((), 0.0)], []
    for i in range(1, NEW + 1):
        grown = []
        for text, score in live:
            logp = system.log_probs([list(text)] * 3)[b][-1]
            done.append((text, (score + logp[STOP]) / i**length_penalty))
            grown += [((*text, v), score + logp[v]) for v in range(VOCAB) if v != STOP]
        live = sorted(grown, key=lambda pair: -pair[1])[:num_beams]
    done += [(text, score / NEW**length_penalty) for text, score in live]
    return max(done, key=lambda pair: pair[1])


def assert_same(got, want):
    assert [text for text, _ in got] == [text for text, _ in want]
    np.testing.assert_allclose([s for _, s in got], [s for _, s in want], rtol=0, atol=2e-5)


@pytest.mark.quick
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0])
def test_a_wide_beam_finds_the_best_of_all(language, length_penalty):
    got = search(language, num_beams=25, stop_ids=(STOP,), length_penalty=length_penalty)
    for row, want in zip(got, exhaustive(language, length_penalty), strict=True):
        assert_same(row[:1], want[:1])


def test_all_ranks_are_right_when_the_search_runs_to_the_end(language):
    every = exhaustive(language, 1.0)
    for row, want in zip(search(language, num_beams=25, stop_ids=(STOP,)), every, strict=True):
        assert_same(row, want[:25])


def test_a_narrow_beam_agrees_with_python_lists(flamingo):
    got = search(flamingo, num_beams=2, stop_ids=(STOP,), length_penalty=0.5)
    for b in range(3):
        assert_same(got[b][:1], [beam_by_hand(flamingo, b, 2, 0.5)])


def test_one_beam_without_stops_is_greedy(language, key):
    tokens, _ = generate(language.model, language.params, language.prompts, key, max_new_tokens=NEW)
    assert [row[0][0] for row in search(language, num_beams=1)] == [tuple(row) for row in np.asarray(tokens).tolist()]


def test_there_may_be_fewer_continuations_than_beams(language):
    beams = beam_search(language.model, language.params, language.prompts, max_new_tokens=1, num_beams=9,
                        stop_ids=(STOP,))
    assert np.isfinite(beams.scores).sum(axis=1).tolist() == [6, 6, 6]      # five tokens and the empty text
    np.testing.assert_allclose(np.exp(beams.scores).sum(axis=1), 1, rtol=1e-5)


def test_a_long_continuation_that_gets_better_late_is_not_given_up(language):
    tiny = 1e-9                             # tokens: 0 begins, 1 and 3 go on, 2 stops
    model = Bigram(((tiny, 0.55, 0.45, tiny), (tiny, tiny, 0.8, 0.2), (tiny, tiny, tiny, 1.0),
                    (tiny, tiny, tiny, 1.0)))
    prompt = type(language.prompts)(np.zeros((1, 1), np.int32), *[None] * 8)
    beams = beam_search(model, None, prompt, max_new_tokens=9, num_beams=2, stop_ids=(STOP,))
    # "1 3 3 ..." is behind at two tokens, -1.10 against the -0.41 of "1 stop", and ahead from six on.
    assert beams.tokens[0, 0].tolist() == [1] + [3] * 8
    np.testing.assert_allclose(beams.scores[0, 0], np.log(0.55 * 0.2) / 9, atol=1e-6)
