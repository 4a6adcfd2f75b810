import numpy as np
import pytest

from mmjax.decoding import SamplingConfig, generate

NEW = 8


def greedy(system, stop_ids=()):
    """Greedy continuation by the full forward pass, one token at a time."""
    rows, running = [[] for _ in range(3)], [True] * 3
    for _ in range(NEW):
        logp = system.log_probs(rows)
        for b in range(3):
            token = int(np.argmax(logp[b][-1]))
            running[b] = running[b] and token not in stop_ids
            if running[b]:
                rows[b].append(token)
    return rows


def rows_of(tokens, lengths):
    return [row[:n].tolist() for row, n in zip(np.asarray(tokens), np.asarray(lengths), strict=True)]


@pytest.mark.quick
def test_greedy_is_that_of_the_full_forward_pass(system, key):
    want = greedy(system)
    tokens, lengths = generate(system.model, system.params, system.prompts, key, max_new_tokens=NEW)
    assert tokens.dtype == lengths.dtype == np.int32
    assert rows_of(tokens, lengths) == want
    assert len({tuple(row) for row in want}) == 3       # the prompts differ in what follows


def test_a_row_ends_before_its_first_stop_token_and_is_padded(language, key):
    free = greedy(language)
    stops = (free[1][2], free[2][3])
    want = greedy(language, stops)
    assert len({len(row) for row in want}) > 1
    tokens, lengths = generate(language.model, language.params, language.prompts, key, max_new_tokens=NEW,
                               stop_ids=stops)
    assert rows_of(tokens, lengths) == want
    assert not np.asarray(tokens)[np.arange(NEW) >= np.asarray(lengths)[:, None]].any()


def test_a_row_may_stop_at_once(language, key):
    stops = tuple({row[0] for row in greedy(language)})
    tokens, lengths = generate(language.model, language.params, language.prompts, key, max_new_tokens=NEW,
                               stop_ids=stops)
    assert not np.asarray(tokens).any() and not np.asarray(lengths).any()


def test_sampling_draws_from_the_models_distribution(language, key):
    one = [np.asarray(x)[:1].repeat(4096, 0) for x in language.prompts]
    tokens, _ = generate(language.model, language.params, type(language.prompts)(*one), key, max_new_tokens=2,
                         sampling=SamplingConfig(temperature=2.0))
    tokens = np.asarray(tokens)
    scaled = lambda logp: np.exp(logp / 2) / np.exp(logp / 2).sum()  # noqa: E731
    want = scaled(language.log_probs([[]] * 3)[0][0])
    np.testing.assert_allclose(np.bincount(tokens[:, 0], minlength=6) / 4096, want, atol=4 * 0.5 / 64)
    first = np.bincount(tokens[:, 0]).argmax()
    second = tokens[tokens[:, 0] == first, 1]
    want = scaled(language.log_probs([[first], [], []])[0][-1])
    np.testing.assert_allclose(np.bincount(second, minlength=6) / len(second), want, atol=2 / np.sqrt(len(second)))


def test_refuses_what_it_cannot_hold(language, key):
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        generate(language.model, language.params, language.prompts, key, max_new_tokens=0)
    with pytest.raises(ValueError, match="max_len=39 exceeds max_positions=32"):
        generate(language.model, language.params, language.prompts, key, max_new_tokens=30)
