import jax
import numpy as np
import pytest

from mmjax.decoding import score_candidates
from mmjax.parallel import make_mesh, param_shardings

CANDIDATES = [[3], [3, 1], [0, 5, 2], [4, 4, 4], [1, 2, 3]]


def padded(rows):
    out = np.full((len(rows), max(map(len, rows))), 5, np.int32)        # an id that would count if it were not masked
    for i, row in enumerate(rows):
        out[i, :len(row)] = row
    return out, np.array([len(row) for row in rows], np.int32)


def likelihood(system, candidates):
    """float[3] log-likelihood of `candidates[b]` after prompt b, by the full forward pass."""
    logp = system.log_probs(candidates)
    return [sum(logp[b][i, token] for i, token in enumerate(row)) for b, row in enumerate(candidates)]


@pytest.mark.quick
def test_scores_are_those_of_the_full_forward_pass(system):
    want = np.array([likelihood(system, [candidate] * 3) for candidate in CANDIDATES]).T
    got = score_candidates(system.model, system.params, system.prompts, *padded(CANDIDATES))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_every_row_may_have_its_own_candidates(language):
    own = [CANDIDATES[:2], CANDIDATES[2:4], CANDIDATES[3:]]
    want = np.array([likelihood(language, list(column)) for column in zip(*own, strict=True)]).T
    tokens, lengths = padded([candidate for row in own for candidate in row])
    got = score_candidates(language.model, language.params, language.prompts, tokens.reshape(3, 2, -1),
                           lengths.reshape(3, 2))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_reading_several_candidates_together_gives_the_same(flamingo):
    args = flamingo.model, flamingo.params, flamingo.prompts, *padded(CANDIDATES)
    np.testing.assert_allclose(score_candidates(*args, together=2), score_candidates(*args), rtol=0, atol=2e-5)


def test_scores_over_a_mesh_are_the_same(flamingo):
    rows = np.arange(8) % 3
    prompts = type(flamingo.prompts)(*(np.asarray(x)[rows] for x in flamingo.prompts))
    want = score_candidates(flamingo.model, flamingo.params, prompts, *padded(CANDIDATES))
    mesh = make_mesh({"fsdp": 4, "model": 2})
    shapes = jax.eval_shape(flamingo.model.init, jax.random.key(0))
    params = jax.device_put(flamingo.params, param_shardings(flamingo.model.axes, shapes, mesh))
    with jax.set_mesh(mesh):
        got = score_candidates(flamingo.model, params, prompts, *padded(CANDIDATES))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_single_tokens_are_the_next_token_distribution(language):
    got = score_candidates(language.model, language.params, language.prompts, *padded([[i] for i in range(6)]))
    np.testing.assert_allclose(np.exp(got).sum(axis=1), 1, rtol=1e-5)
