"""The decoder in its three forms against NumPy, packed documents, positions, and the cache's limits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle as oracle
import pytest

from mmjax.layers import BlockConfig, init_params, unbox
from mmjax.losses import token_cross_entropy
from mmjax.parts.decoder import Decoder, DecoderConfig, empty_cache, text_example

MAGNETO = DecoderConfig(11, 2, BlockConfig(16, 2, 24, sub_norm=True, init_gain=1.2), positions="xpos", max_positions=9,
                        rotary_layout="interleaved", xpos_scale_base=4.0, scale_embedding=True)
LLAMA = DecoderConfig(11, 2, BlockConfig(16, 4, 24, num_kv_heads=2, norm="rms", use_bias=False, activation="swiglu"),
                      max_positions=9, rotary_base=100.0, tie_embeddings=False)
GPT = DecoderConfig(11, 2, BlockConfig(16, 2, 24, activation="gelu_tanh"), positions="learned", max_positions=9)
FORMS = pytest.mark.parametrize("config", [MAGNETO, LLAMA, GPT], ids=["magneto", "llama", "gpt"])

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 8), np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 0]], np.int32)


def random_params(config: DecoderConfig):
    rng, key = np.random.default_rng(0), jax.random.key(0)
    shapes = jax.eval_shape(lambda: unbox(init_params(Decoder(config), key, text_example())))
    return jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def run():
    """config -> (params, jitted function from tokens, segment ids and positions to logits)."""
    made = {}

    def get(config):
        if config not in made:
            params, decoder = random_params(config), Decoder(config)
            forward = lambda lm, tokens, segments, positions: lm.run(lm.embed(tokens), segments, positions)  # noqa: E731
            made[config] = params, jax.jit(lambda *args: decoder.apply({"params": params}, *args, method=forward))
        return made[config]

    return get


def by_hand(c: DecoderConfig, params, tokens, segments, positions):
    p = oracle.float64(params)
    x = p["token_embed"]["table"][tokens]
    if c.scale_embedding:
        x = x * math.sqrt(c.block.embed_dim)
    if c.positions == "learned":
        x = x + p["position_embed"]["table"][positions]
    power = (positions - c.max_positions // 2) / c.xpos_scale_base if c.positions == "xpos" else 0.0
    turn = lambda a, sign: oracle.turn(a, positions, c.rotary_layout, c.rotary_base, sign * power)  # noqa: E731
    rotate = None if c.positions == "learned" else lambda q, k: (turn(q, 1), turn(k, -1))
    for i in range(c.num_layers):
        x = oracle.block(oracle.layer(p["blocks"], i), x, oracle.causal(segments), c.block.activation, c.block.norm,
                         rotate)
    x = oracle.norm(p["final_norm"], x, kind=c.block.norm)
    return x @ (p["token_embed"]["table"].T if c.tie_embeddings else p["head"]["kernel"])


@pytest.mark.quick
@FORMS
def test_decoder_matches_numpy(config, run):
    params, forward = run(config)
    got = forward(TOKENS, SEGMENTS, POSITIONS)
    assert got.shape == (2, 8, 11) and got.dtype == jnp.float32
    for row in range(2):
        want = by_hand(config, params, TOKENS[row], SEGMENTS[row], POSITIONS[row])
        real = SEGMENTS[row] > 0
        np.testing.assert_allclose(got[row][real], want[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [MAGNETO, LLAMA], ids=["tied", "head"])
def test_loss_is_that_of_the_logits(config, run):
    params, forward = run(config)
    batch = text_example()._replace(tokens=TOKENS, targets=TOKENS[::-1], loss_weights=(SEGMENTS > 0) * np.float32(0.3),
                                    segment_ids=SEGMENTS, positions=POSITIONS)
    lm = Decoder(config, parent=None).bind({"params": params})
    loss, metrics = lm.loss(lm.embed(TOKENS), batch)
    want, _ = token_cross_entropy(forward(TOKENS, SEGMENTS, POSITIONS), batch.targets, batch.loss_weights)
    np.testing.assert_allclose((loss, metrics["tokens"]), (want, 14 * 0.3), rtol=1e-5)


@pytest.mark.quick
@FORMS
def test_packed_documents_are_as_alone(config, run):
    """The second document of row 0 moved to the start of a row of its own."""
    _, forward = run(config)
    packed = forward(TOKENS, SEGMENTS, POSITIONS)[0, 3:]
    alone = forward(np.roll(TOKENS, -3, axis=1), (np.arange(8) < 5)[None] * np.ones((2, 1), np.int32),
                    np.tile(np.arange(8, dtype=np.int32), (2, 1)))[0, :5]
    np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
@FORMS
def test_only_learned_positions_are_absolute(config, run):
    _, forward = run(config)
    here, there = forward(TOKENS, SEGMENTS, POSITIONS)[0], forward(TOKENS, SEGMENTS, POSITIONS + 3)[0]
    moved = float(jnp.abs(here - there).max())
    assert moved > 0.1 if config.positions == "learned" else moved < 2e-5


def test_scaled_embeddings_start_at_unit_variance():
    for config, std in ((MAGNETO, 64**-0.5), (GPT, 0.02)):
        config = dataclasses.replace(config, vocab_size=500, num_layers=1, block=BlockConfig(64, 2, 8))
        params = jax.jit(lambda key, c=config: unbox(init_params(Decoder(c), key, text_example())))(jax.random.key(0))
        assert float(params["token_embed"]["table"].std()) == pytest.approx(std, rel=0.02)


def test_embeddings_drop_out_only_with_a_key(run):
    params, forward = run(GPT)
    config = dataclasses.replace(GPT, embed_dropout=0.5)
    dropped = jax.jit(lambda key: Decoder(config).apply(
        {"params": params}, method=lambda lm: lm.run(lm.embed(TOKENS), SEGMENTS, POSITIONS, key=key)))
    np.testing.assert_allclose(dropped(None), forward(TOKENS, SEGMENTS, POSITIONS), rtol=1e-5, atol=1e-5)
    here, there = dropped(jax.random.key(0)), dropped(jax.random.key(1))
    assert float(jnp.abs(here - there).max()) > 0.1


@pytest.mark.quick
def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown positions 'cosine'; choose from learned, rotary, xpos, alibi, rel"):
        DecoderConfig(11, 2, BlockConfig(16, 2, 24), positions="cosine")
    with pytest.raises(ValueError, match="max_len=10 exceeds max_positions=9 of the language model; shorten"):
        empty_cache(GPT, 2, 10)
