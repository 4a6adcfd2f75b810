"""Published sizes have the published numbers of parameters."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from mmjax.layers import init_params, unbox
from mmjax.parts.decoder import Decoder, DecoderConfig, text_example
from mmjax.parts.encoder_decoder import EncoderDecoder
from mmjax.parts.language_presets import PRESETS

# Sums of numel of transformers' models on meta tensors.
COUNTS = {
    "opt-125m": 125_239_296, "opt-1.3b": 1_315_758_080, "opt-2.7b": 2_651_596_800, "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280, "opt-30b": 29_974_540_288, "opt-66b": 65_719_701_504,
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "llama2-70b": 68_976_648_192, "flan-t5-xl": 2_849_757_184, "flan-t5-xxl": 11_135_332_352,
    "gpt-neox-20b": 20_554_567_680, "mpt-7b": 6_649_286_656, "mixtral-8x7b": 46_702_792_704,
}
TIED = {"flan-t5-base": 222_903_552, "flan-t5-large": 750_251_008, "flan-t5-xl": 2_783_959_040,
        "flan-t5-xxl": 11_003_736_064}


def count(config) -> int:
    one = jnp.ones((1, 1), jnp.int32)
    module, example = ((Decoder(config), (text_example(),)) if isinstance(config, DecoderConfig)
                       else (EncoderDecoder(config), (one, one)))
    shapes = jax.eval_shape(lambda: unbox(init_params(module, jax.random.key(0), *example)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.quick
@pytest.mark.parametrize("name", COUNTS)
def test_number_of_parameters(name):
    assert count(PRESETS[name]) == COUNTS[name]


@pytest.mark.quick
@pytest.mark.parametrize("name", TIED)
def test_number_of_parameters_with_a_tied_head(name):
    assert count(dataclasses.replace(PRESETS[name], tie_embeddings=True)) == TIED[name]


def test_flamingos_language_models_have_13_squares_of_their_width_per_layer():
    """What the published 1.4B and 70B imply: an extra D x D per layer for the positions, 32,000 tokens."""
    for name, billions in (("flamingo-lm-1.4b", 1.374), ("flamingo-lm-70b", 70.06)):
        c = PRESETS[name]
        assert count(c) / 1e9 == pytest.approx(billions, abs=0.01)
        assert count(c) / (13 * c.num_layers * c.block.embed_dim**2 + 32_000 * c.block.embed_dim) == pytest.approx(
            1, abs=2e-4)
