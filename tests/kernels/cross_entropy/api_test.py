import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.cross_entropy import cross_entropy


def value_and_grads(case, vocab_axis=0, implementation=None):
    """Loss, hits and the gradients of twice the loss, those of the matrix as [V, D]."""
    hidden, matrix, targets, weights = case
    matrix = matrix if vocab_axis == 0 else matrix.T

    @jax.jit
    def run(hidden, matrix, weights):
        call = functools.partial(cross_entropy, vocab_axis=vocab_axis, implementation=implementation)
        (loss, hits), vjp = jax.vjp(lambda h, m, w: call(h, m, targets, w), hidden, matrix, weights)
        return loss, hits, *vjp((jnp.float32(2), jnp.float32(7)))

    loss, hits, d_hidden, d_matrix, d_weights = run(hidden, matrix, weights)
    assert d_hidden.dtype == hidden.dtype and d_matrix.dtype == matrix.dtype
    return loss, hits, d_hidden, d_matrix if vocab_axis == 0 else d_matrix.T, d_weights


def assert_close(got, want, tolerance, factor=2):
    for name, a, b in zip(("loss", "hits", "hidden", "matrix", "weights"), got, want, strict=True):
        b = b if name in ("loss", "hits") else factor * b
        a = np.asarray(a, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1), err_msg=name)


@pytest.mark.quick
@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize("shape", [(2, 7, 6, 11), (1, 1, 3, 2)])
def test_values_and_gradients_match_a_loop(random_case, by_hand, small_chunks, shape, vocab_axis):
    case = random_case(*shape)
    assert_close(value_and_grads(case, vocab_axis), by_hand(case), 2e-6)


def test_one_chunk_matches_a_loop(random_case, by_hand):
    case = random_case(2, 7, 6, 11)
    assert_close(value_and_grads(case), by_hand(case), 2e-6)


def test_the_reference_matches_a_loop(random_case, by_hand):
    case = random_case(2, 7, 6, 11)
    got, want = value_and_grads(case, 1, "reference"), by_hand(case)
    want = *want[:4], want[4] + 3.5 * (want[1] > 0) * hit(case)     # its hits have a gradient for the weights
    assert_close(got, want, 2e-6)


def hit(case):
    return (case.hidden @ case.matrix.T).argmax(-1) == case.targets


def test_bfloat16(random_case, by_hand, small_chunks):
    case = random_case(2, 7, 6, 11)
    case = case._replace(hidden=jnp.asarray(case.hidden, jnp.bfloat16))
    rounded = case._replace(hidden=np.asarray(case.hidden, np.float32),
                            matrix=np.asarray(jnp.asarray(case.matrix, jnp.bfloat16), np.float32))
    assert_close(value_and_grads(case), by_hand(rounded), 1e-2)


def test_weights_of_zero_give_zero(random_case, small_chunks):
    case = random_case(2, 7, 6, 11)
    loss, hits, d_hidden, d_matrix, _ = value_and_grads(case._replace(weights=np.zeros_like(case.weights)))
    assert loss == hits == 0 and not np.any(d_hidden) and not np.any(d_matrix)


def test_a_tie_counts_for_the_first_word(small_chunks):
    hidden, matrix = np.ones((1, 2, 1), np.float32), np.array([[0.0], [1.0], [1.0]], np.float32)
    _, hits = cross_entropy(hidden, matrix, np.array([[1, 2]]), np.ones((1, 2), np.float32))
    assert hits == 1


def test_extreme_logits_stay_finite(small_chunks):
    hidden, matrix = np.array([[[1e4], [-1e4]]], np.float32), np.array([[1e4], [-1e4], [0.0]], np.float32)
    weights, targets = np.ones((1, 2), np.float32), np.array([[0, 0]])
    (loss, _), grad = jax.value_and_grad(cross_entropy, has_aux=True)(hidden, matrix, targets, weights)
    assert loss == 2e8 and np.isfinite(grad).all()


def largest_array(run, *args) -> int:
    """Elements of the largest float32 array that the computation makes beside one of the shape of the matrix."""
    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars if v.aval.dtype == np.float32)
            for sub in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    yield from sizes(sub)

    return max(sizes(jax.make_jaxpr(run)(*args).jaxpr))


def test_logits_of_all_tokens_never_exist(random_case, small_chunks):
    case = random_case(2, 20, 3, 50)
    for name, least, most in (("chunked", 5 * 50, 5 * 50), ("reference", 40 * 50, 40 * 50)):
        grad = jax.grad(lambda h, m, name=name: cross_entropy(h, m, *case[2:], implementation=name)[0], argnums=(0, 1))
        assert least <= largest_array(grad, *case[:2]) <= most


def test_a_frozen_matrix_costs_no_gradient(random_case, small_chunks):
    """XLA drops the accumulation: no array of the matrix' shape is left in the loop's carry."""
    case = random_case(2, 20, 3, 50)
    grad = jax.jit(jax.grad(lambda h, m: cross_entropy(h, m, *case[2:])[0], argnums=0))
    both = jax.jit(jax.grad(lambda h, m: cross_entropy(h, m, *case[2:])[0], argnums=(0, 1)))
    flops = [f.lower(*case[:2]).compile().as_text().count("f32[50,3]{1,0} dot(") for f in (grad, both)]
    assert flops == [0, 1]


@pytest.mark.parametrize("changes, words", [
    (dict(hidden=np.zeros((2, 7, 5), np.float32)), r"hidden \[2, 7, 5\] and matrix \[11, 6\].*with the same D"),
    (dict(targets=np.zeros((2, 6), np.int32)), r"targets \[2, 6\].*must be \[B, T\] = \[2, 7\]"),
    (dict(targets=np.zeros((2, 7), np.float32)), "targets float32 must be integers"),
])
def test_bad_arguments_are_named(random_case, changes, words):
    with pytest.raises(ValueError, match=words):
        cross_entropy(*random_case(2, 7, 6, 11)._replace(**changes))


def test_bad_options_are_named(random_case):
    case = random_case(2, 7, 6, 11)
    with pytest.raises(ValueError, match="vocab_axis=2 must be 0"):
        cross_entropy(*case, vocab_axis=2)
    with pytest.raises(ValueError, match="implementation='fused' must be None or one of chunked, reference"):
        cross_entropy(*case, implementation="fused")
