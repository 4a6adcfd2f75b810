import jax
import numpy as np
import pytest

from mmjax.kernels.attention import IntervalMask, Rotary, api, attention
from mmjax.kernels.attention import mask as masks

SHAPE = 2, 6, 9, 4, 2, 8


ANYWHERE = [i.name for i in api.IMPLEMENTATIONS if i.name != "pallas_gpu"]  # that one needs a GPU
jitted = jax.jit(attention, static_argnames=("scale", "soft_cap", "implementation"))


def call(case, run=jitted, **changes):
    arguments = dict(q=case.q, k=case.k, v=case.v, mask=IntervalMask(case.start, case.stop)) | changes
    return run(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


@pytest.mark.quick
@pytest.mark.parametrize("implementation", [None, *ANYWHERE])
def test_every_implementation_matches_a_loop(random_case, attention_loop, implementation):
    case = random_case(SHAPE, bias_rows=2)
    got = call(case, bias=case.bias, implementation=implementation)
    np.testing.assert_allclose(got, attention_loop(case, 8**-0.5), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("implementation", ANYWHERE)
def test_rotary_turns_queries_and_keys(random_case, attention_loop, implementation):
    case = random_case(SHAPE)
    rotary = Rotary(
        np.arange(12, dtype=np.int32).reshape(2, 6), np.arange(18, dtype=np.int32).reshape(2, 9), layout="interleaved",
        xpos_scale_base=512.0, xpos_center=4)
    got = call(case, rotary=rotary, scale=0.5, implementation=implementation)
    case = case._replace(q=rotary.rotate_q(case.q), k=rotary.rotate_k(case.k))
    np.testing.assert_allclose(got, attention_loop(case, 0.5), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("implementation", ANYWHERE)
def test_soft_cap_bounds_the_logits_after_the_bias(random_case, attention_loop, implementation):
    case = random_case(SHAPE, bias_rows=2)
    got = call(case, bias=case.bias, soft_cap=0.9, implementation=implementation)
    np.testing.assert_allclose(got, attention_loop(case, 8**-0.5, soft_cap=0.9), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("num_tokens, chosen", [(1, "reference"), (80, "reference"), (90, "blockwise")])
def test_the_choice_on_a_cpu_follows_the_size(random_case, num_tokens, chosen):
    case = random_case((1, num_tokens, 200, 1, 1, 4))
    np.testing.assert_array_equal(call(case), call(case, implementation=chosen))


def test_the_first_implementation_that_can_and_suits_is_taken(random_case, monkeypatch):
    case = random_case(SHAPE)
    never = api.Implementation("never", None, refuse=lambda *a, **k: "has no device", suits=lambda *a, **k: True)
    unsuited = api.Implementation("unsuited", None, refuse=lambda *a, **k: None, suits=lambda *a, **k: False)
    monkeypatch.setattr(api, "IMPLEMENTATIONS", (never, unsuited, *api.IMPLEMENTATIONS))
    choice = call(case, attention)      # not jitted: a compiled program remembers an earlier choice
    np.testing.assert_array_equal(choice, call(case, attention, implementation="reference"))
    with pytest.raises(ValueError, match="'never' cannot compute this call.*never: has no device; unsuited: can"):
        call(case, implementation="never")


@pytest.mark.parametrize("num_tokens, num_keys", [(3, 0), (0, 3)])
def test_no_keys_or_no_queries(random_case, num_tokens, num_keys):
    case = random_case((2, num_tokens, num_keys, 2, 1, 4))
    np.testing.assert_array_equal(call(case), np.zeros((2, num_tokens, 2, 4)))
    with pytest.raises(ValueError, match="blockwise: .* have nothing to cut into blocks; reference: can"):
        call(case, implementation="blockwise")


def test_an_unknown_implementation_names_the_known_ones(random_case):
    with pytest.raises(ValueError, match="implementation='flash' must be None or one of .*blockwise, reference"):
        call(random_case(SHAPE), implementation="flash")


@pytest.mark.parametrize("changes, words", [
    (dict(q=np.zeros((2, 6, 3, 8), np.float32)), r"q \[2, 6, 3, 8\], k \[2, 9, 2, 8\].*N a multiple of K"),
    (dict(k=np.zeros((2, 8, 2, 8), np.float32)), r"k \[2, 8, 2, 8\] and v \[2, 9, 2, 8\]"),
    (dict(q=np.zeros((6, 4, 8), np.float32)), r"q \[6, 4, 8\]"),
    (dict(q=np.zeros((2, 6, 4, 8), np.int32)), "q int32.*must be floating point"),
    (dict(mask=masks.causal(np.ones((2, 9), np.int32))), r"mask.start int32\[2, 9\] must be integers.*\[2, 6\]"),
    (dict(mask=IntervalMask(*np.zeros((2, 2, 6), np.float32))), "mask.start float32"),
    (dict(rotary=Rotary(*[np.zeros((2, 9), np.int32)] * 2)), r"rotary positions \[2, 9\].*\[2, 6\]"),
    (dict(bias=np.zeros((2, 1, 6, 9), np.float32)), r"bias float32\[2, 1, 6, 9\] must be.*\[2, 4, 6, 9\]"),
    (dict(bias=np.zeros((2, 4, 6, 9), bool)), r"bias bool"),
    (dict(soft_cap=0.0), "soft_cap=0.0 must be positive, or None"),
])
def test_bad_arguments_are_named(random_case, changes, words):
    with pytest.raises(ValueError, match=words):
        call(random_case(SHAPE), **changes)
