import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.contrastive import pair_loss
from mmjax.kernels.contrastive import ring as ring_module
from mmjax.parallel import make_mesh

SCALE, BIAS = 3.0, -1.5


def draw(n=12, d=5, unused=(3, 10)):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(2, n, d)).astype(np.float32)
    weights = np.ones(n, np.float32)
    weights[list(unused)] = 0
    return x, y, weights


def by_hand(x, y, weights, form):
    """(loss, hits) in float64 by loops over the pairs that exist."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    real = np.flatnonzero(weights)
    z = {(i, j): SCALE * x[i] @ y[j] + BIAS for i in real for j in real}
    loss = hits = 0.0
    for i in real:
        row, column = ([z[p] for p in pairs] for pairs in ([(i, j) for j in real], [(j, i) for j in real]))
        if form == "softmax":
            loss += sum(math.log(sum(map(math.exp, side))) - z[i, i] for side in (row, column)) / 2
        else:
            loss += sum(math.log1p(math.exp(-z[i, j] if i == j else z[i, j])) for j in real)
        hits += sum(z[i, i] == max(side) for side in (row, column)) / 2
    return loss, hits


def numbers(case, form, implementation=None):
    """Loss, hits, and the gradients of twice the loss for x, y, scale and bias."""
    x, y, weights = case

    @jax.jit
    def run(x, y, scale, bias):
        call = functools.partial(pair_loss, form=form, implementation=implementation)
        (loss, hits), vjp = jax.vjp(lambda x, y, s, b: call(x, y, weights, s, b), x, y, scale, bias)
        return loss, hits, *vjp((jnp.float32(2), jnp.float32(7)))

    return jax.tree.map(np.asarray, run(x, y, jnp.float32(SCALE), jnp.float32(BIAS)))


def assert_close(got, want, tolerance):
    for name, a, b in zip(("loss", "hits", "x", "y", "scale", "bias"), got, want, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # Scalars are sums over rows; the softmax does not depend on the bias, whose gradient is the rounding of a 0.
        size = max(np.abs(b).max(), 1) if b.ndim else max(abs(b), len(want[2]))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size, err_msg=name)


@pytest.mark.quick
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("implementation", ["ring", "reference"])
def test_values_match_loops_over_pairs(form, implementation):
    case = draw()
    loss, hits = pair_loss(*case, SCALE, BIAS, form=form, implementation=implementation)
    want_loss, want_hits = by_hand(*case, form)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert hits == want_hits


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_gradients_match_finite_differences(form):
    x, y, weights = draw(n=5, d=3, unused=(1,))
    got = numbers((x, y, weights), form)[2:4]
    for which, gradient in enumerate(got):
        for index in np.ndindex(*x.shape):
            ends = []
            for step in (1e-5, -1e-5):
                features = [x.astype(np.float64), y.astype(np.float64)]
                features[which][index] += step
                ends.append(by_hand(*features, weights, form)[0])
            np.testing.assert_allclose(gradient[index], 2 * (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_chunks_of_rows_change_nothing(form, monkeypatch):
    want = numbers(draw(), form, "reference")
    monkeypatch.setattr(ring_module, "BLOCK", 40)          # 12 columns: 3 rows at a time
    assert_close(numbers(draw(), form), want, 1e-6)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sizes, explicit", [(dict(data=8), False), (dict(data=2, fsdp=2, model=2), True)])
def test_a_mesh_of_8_equals_one_device(form, sizes, explicit):
    case = draw(n=24)
    want = numbers(case, form, "reference")
    with jax.set_mesh(make_mesh(sizes, explicit=explicit)):
        assert_close(numbers(case, form), want, 1e-6)


def test_bfloat16_features():
    x, y, weights = draw()
    x, y = (jnp.asarray(a, jnp.bfloat16) for a in (x, y))
    got = numbers((x, y, weights), "softmax")
    assert got[2].dtype == jnp.bfloat16
    want = numbers((*(np.asarray(a, np.float32) for a in (x, y)), weights), "softmax", "reference")
    assert_close([np.asarray(a, np.float32) for a in got], want, 1e-2)


def test_no_pairs_at_all_give_zero():
    x, y, weights = draw()
    loss, hits, *gradients = numbers((x, y, 0 * weights), "softmax")
    assert loss == hits == 0 and not any(np.any(g) for g in gradients)


def test_no_device_holds_all_similarities():
    n = 4096
    with jax.set_mesh(make_mesh(dict(data=8))):
        features = jax.ShapeDtypeStruct((n, 16), jnp.float32)
        step = jax.jit(jax.grad(lambda x, y: pair_loss(x, y, jnp.ones(n), SCALE)[0], (0, 1)))
        compiled = step.lower(features, features).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * n // 8 * n // 8 * 4      # a few blocks of n / 8 squared
    assert " all-gather(" not in compiled.as_text()


@pytest.mark.quick
def test_wrong_arguments_are_named():
    x, y, weights = draw()
    with pytest.raises(ValueError, match=r"weights \[11\] must be \[N\]"):
        pair_loss(x, y, weights[1:], SCALE)
    with pytest.raises(ValueError, match="form='cosine' must be one of softmax, sigmoid"):
        pair_loss(x, y, weights, SCALE, form="cosine")


@pytest.mark.quick
@pytest.mark.parametrize("implementation", ["ring", "reference"])
def test_what_stands_where_no_pair_is_does_not_matter(implementation):
    x, y, weights = draw(unused=(3,))
    want = pair_loss(x, y, weights, SCALE, BIAS, implementation=implementation)
    x[3], y[3] = np.nan, np.inf
    assert pair_loss(x, y, weights, SCALE, BIAS, implementation=implementation) == want
