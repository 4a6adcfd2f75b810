"""What the forms of published decoders must do beyond the values that tests/parity checks: packing, cache, losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import mask as masks
from mmjax.layers import BlockConfig, MoeConfig, init_params, unbox
from mmjax.losses import token_cross_entropy
from mmjax.parts.decoder import Decoder, DecoderConfig, empty_cache, text_example

PLAIN = dict(norm="rms", use_bias=False)
FORMS = {
    "opt": DecoderConfig(11, 2, BlockConfig(12, 3, 20, activation="relu"), positions="learned", position_offset=2,
                         max_positions=9),
    "gpt_neox": DecoderConfig(11, 2, BlockConfig(12, 3, 20, norm_place="parallel"), rotary_dim=2, tie_embeddings=False),
    "mpt": DecoderConfig(11, 2, BlockConfig(12, 3, 20, use_bias=False), positions="alibi"),
    "chinchilla": DecoderConfig(11, 2, BlockConfig(12, 3, 20, relative=True, **PLAIN), positions="relative"),
    "mixtral": DecoderConfig(11, 2, BlockConfig(12, 3, 20, num_kv_heads=1, activation="swiglu", **PLAIN,
                                                moe=MoeConfig(4, capacity_factor=8.0)), tie_embeddings=False),
    # Layers 1 and 3 of 5 have experts.
    "mm1": DecoderConfig(11, 5, BlockConfig(12, 3, 20, activation="swiglu", **PLAIN, moe=MoeConfig(4)), moe_every=2),
}
EACH = pytest.mark.parametrize("form", FORMS)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 7), np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 0]], np.int32)


@functools.cache
def made(form: str):
    """Parameters of a form, and its jitted forward pass."""
    decoder, rng = Decoder(FORMS[form], parent=None), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: unbox(init_params(decoder, jax.random.key(0), text_example())))
    params = jax.tree.map(lambda a: 0.4 * rng.normal(size=a.shape).astype(np.float32), shapes)
    forward = lambda lm, tokens, *place: lm.run(lm.embed(tokens), *place)  # noqa: E731
    return params, jax.jit(lambda *args: decoder.apply({"params": params}, *args, method=forward))


@EACH
def test_packed_documents_are_as_alone(form):
    _, forward = made(form)
    packed = forward(TOKENS, SEGMENTS, POSITIONS)[0, 3:]
    alone = forward(np.roll(TOKENS, -3, axis=1), np.tile(np.arange(7) < 4, (2, 1)).astype(np.int32),
                    np.tile(np.arange(7, dtype=np.int32), (2, 1)))[0, :4]
    np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-5)


@EACH
def test_prefill_and_decode_give_the_logits_of_one_run(form):
    """Rows of different lengths: 3 and 2 tokens at first, then one, then again three and two."""
    params, forward = made(form)
    decoder, ones = Decoder(FORMS[form], parent=None), np.ones((2, 7), np.int32)
    want = forward(TOKENS, ones, np.cumsum(ones, axis=1, dtype=np.int32) - 1)
    extend = jax.jit(lambda tokens, cache, new: decoder.apply(
        {"params": params}, method=lambda lm: lm.extend(lm.embed(tokens), cache, new)))
    cache, held = empty_cache(FORMS[form], 2, 7), np.array([0, 0])
    for width, new in ((3, [3, 2]), (1, [1, 1]), (3, [3, 2])):
        new = np.array(new, np.int32)
        rows = [TOKENS[b, held[b]:held[b] + width] for b in range(2)]
        logits, cache = extend(np.stack(rows), cache, new)
        for b in range(2):
            np.testing.assert_allclose(logits[b, :new[b]], want[b, held[b]:held[b] + new[b]], rtol=2e-5, atol=2e-5)
        held = held + new
    np.testing.assert_array_equal(cache.lengths, held)


def test_losses_of_the_router_join_that_of_the_tokens():
    params, forward = made("mixtral")
    weights = (SEGMENTS > 0).astype(np.float32)
    batch = text_example()._replace(tokens=TOKENS, targets=TOKENS[::-1], loss_weights=weights, segment_ids=SEGMENTS,
                                    positions=POSITIONS)
    decoder = Decoder(FORMS["mixtral"], parent=None)
    loss, metrics = jax.device_get(jax.jit(lambda batch: decoder.apply(
        {"params": params}, method=lambda lm: lm.loss(lm.embed(batch.tokens), batch)))(batch))
    logits = forward(TOKENS, SEGMENTS, POSITIONS)
    want, _ = jax.device_get(token_cross_entropy(logits, batch.targets, batch.loss_weights))
    assert metrics["loss"] == pytest.approx(float(want), rel=1e-5)
    assert loss - want == pytest.approx(0.01 * metrics["balance_loss"] + 0.001 * metrics["z_loss"], rel=1e-3)
    assert metrics["balance_loss"] > 0.1 and metrics["z_loss"] > 0.1 and metrics["dropped"] == 0


def test_every_second_layer_of_experts_runs_in_its_place():
    """Layer after layer by hand."""
    params, forward = made("mm1")
    lm = Decoder(FORMS["mm1"], parent=None).bind({"params": params})
    x, mask = lm.embed(TOKENS), masks.causal(SEGMENTS)
    run = lambda block: jax.jit(lambda p, x: block.apply({"params": p}, x, mask, lm._rotary(POSITIONS))[0])  # noqa: E731
    kinds = {"dense": (run(lm.block), lm.blocks), "experts": (run(lm.every.block), lm.every.params)}
    for kind, n in (("dense", 0), ("experts", 0), ("dense", 1), ("experts", 1), ("dense", 2)):
        apply, stacked = kinds[kind]
        x = apply(jax.tree.map(lambda a, n=n: a[n], stacked), x)
    want = lm._logits(lm.final_norm(x))
    np.testing.assert_allclose(forward(TOKENS, SEGMENTS, POSITIONS), want, rtol=2e-5, atol=2e-5)


@pytest.mark.quick
@pytest.mark.parametrize("moe, every", [(None, 2), (MoeConfig(2), 0), (MoeConfig(2), 3)])
def test_the_place_of_experts_is_checked(moe, every):
    with pytest.raises(ValueError, match=f"moe_every={every} must be at least 1, at most num_layers=2, and 1 without"):
        DecoderConfig(11, 2, BlockConfig(12, 3, 20, moe=moe), moe_every=every)


def test_relative_positions_need_their_parameters():
    with pytest.raises(ValueError, match="positions='relative' with block.relative=False"):
        DecoderConfig(11, 2, BlockConfig(12, 3, 20), positions="relative")


def test_experts_have_no_second_norm():
    with pytest.raises(ValueError, match="experts have no second norm"):
        BlockConfig(12, 3, 20, sub_norm=True, moe=MoeConfig(2))


def test_chinchilla_sees_the_order_of_what_is_before():
    """Without its terms of distance, attention without a mask to speak of would not know one order from another."""
    _, forward = made("chinchilla")
    swapped = TOKENS.copy()
    swapped[0, [3, 4]] = (TOKENS[0, 3] + 1) % 11, (TOKENS[0, 3] + 2) % 11
    other = swapped.copy()
    other[0, [3, 4]] = swapped[0, [4, 3]]
    ends = [forward(t, SEGMENTS, POSITIONS)[0, -1] for t in (swapped, other)]
    assert float(jnp.abs(ends[0] - ends[1]).max()) > 1e-2
