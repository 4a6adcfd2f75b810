"""Tokens and words split over eight virtual devices, against the loop on one."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.kernels.cross_entropy import cross_entropy

AXES = ("data", "fsdp", "model", "seq")
SIZES = {
    "nothing": {},
    "tokens": dict(data=2, fsdp=2, seq=2),
    "tokens and words": dict(fsdp=2, model=2, seq=2),
    "words": dict(model=8),
}


@pytest.mark.quick
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_every_split_gives_the_values_of_one_device(random_case, by_hand, small_chunks, sizes, kind, vocab_axis):
    case = random_case(4, 6, 4, 16)
    mesh = jax.make_mesh([SIZES[sizes].get(a, 1) for a in AXES], AXES, axis_types=(kind,) * 4)
    tokens, words = P(("data", "fsdp"), "seq"), P("model", "fsdp")
    matrix = case.matrix if vocab_axis == 0 else case.matrix.T
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
    with jax.set_mesh(mesh):
        args = (place(case.hidden, tokens), place(matrix, words if vocab_axis == 0 else P("fsdp", "model")),
                place(case.targets, tokens), place(case.weights, tokens))

        @jax.jit
        def run(hidden, matrix, targets, weights):
            call = lambda h, m, w: cross_entropy(h, m, targets, w, vocab_axis=vocab_axis)  # noqa: E731
            (loss, hits), vjp = jax.vjp(call, hidden, matrix, weights)
            return loss, hits, *vjp((loss / loss, hits))

        got = jax.block_until_ready(run(*args))
    want = by_hand(case)
    want = *want[:3], want[3] if vocab_axis == 0 else want[3].T, want[4]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(np.abs(b).max(), 1))


def test_a_vocabulary_that_does_not_divide_stays_whole(random_case, by_hand):
    case = random_case(4, 6, 4, 15)
    with jax.set_mesh(jax.make_mesh((4, 1, 2, 1), AXES, axis_types=(AxisType.Auto,) * 4)):
        loss, hits = jax.block_until_ready(jax.jit(cross_entropy)(*case))
    np.testing.assert_allclose((loss, hits), by_hand(case)[:2], rtol=1e-6)


def test_no_device_has_all_words():
    """The compiled program gathers neither the matrix over `model` nor tokens."""
    mesh = jax.make_mesh((2, 1, 4, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    array = lambda shape, dtype, *spec: jax.ShapeDtypeStruct(  # noqa: E731
        shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
    args = (array((4, 6, 4), np.float32, "data"), array((16, 4), np.float32, "model"),
            array((4, 6), np.int32, "data"), array((4, 6), np.float32, "data"))
    with jax.set_mesh(mesh):
        grad = jax.jit(jax.grad(lambda h, m, t, w: cross_entropy(h, m, t, w)[0], argnums=(0, 1)))
        program = grad.lower(*args).compile().as_text()
    assert "all-reduce" in program and "all-gather" not in program
