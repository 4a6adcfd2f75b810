"""T5 beyond the values that tests/parity checks: packed documents, the cache, the loss, and mistakes."""

import functools

import jax
import numpy as np
import pytest

from mmjax.layers import BlockConfig, init_params, unbox
from mmjax.losses import token_cross_entropy
from mmjax.parts.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, same_document

BLOCK = BlockConfig(12, 3, 20, head_dim=4, activation="geglu_tanh", norm="rms", use_bias=False, attention_scale=1.0)
CONFIG = EncoderDecoderConfig(11, 2, 2, BLOCK, num_buckets=8, max_distance=10)
MODULE = EncoderDecoder(CONFIG, parent=None)
rng = np.random.default_rng(0)
SOURCE, TARGET = rng.integers(0, 11, (2, 8), np.int32), rng.integers(0, 11, (2, 6), np.int32)
SOURCE_IDS = np.array([[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0, 0]], np.int32)
TARGET_IDS = np.array([[1, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0]], np.int32)


@functools.cache
def params():
    one, rng = np.ones((1, 1), np.int32), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: unbox(init_params(MODULE, jax.random.key(0), one, one)))
    return jax.tree.map(lambda a: 0.4 * rng.normal(size=a.shape).astype(np.float32), shapes)


def method(function):
    """A jitted call of a function of the bound module."""
    return jax.jit(lambda *args: MODULE.apply({"params": params()}, *args, method=function))


encode = method(lambda lm, tokens, ids: lm.encode(lm.embed(tokens), ids))
run = method(lambda lm, tokens, ids, features, source_ids: lm.run(lm.embed(tokens), ids, features, source_ids))


def test_packed_documents_are_as_alone():
    packed = run(TARGET, TARGET_IDS, encode(SOURCE, SOURCE_IDS), SOURCE_IDS)[0, 2:]
    source, target = np.roll(SOURCE, -3, 1), np.roll(TARGET, -2, 1)
    source_ids, target_ids = ((np.arange(n) < m)[None] * np.ones((2, 1), np.int32) for n, m in ((8, 5), (6, 4)))
    alone = run(target, target_ids, encode(source, source_ids), source_ids)[0, :4]
    np.testing.assert_allclose(packed, alone, rtol=2e-5, atol=2e-5)


def test_generation_gives_the_logits_of_one_run():
    ids = np.where(SOURCE_IDS > 0, 1, 0).astype(np.int32)
    features = encode(SOURCE, ids)
    want = run(TARGET, np.ones_like(TARGET), features, ids)
    cache = method(lambda lm, features, n: lm.start(features, n, max_len=6))(features, ids.sum(1))
    extend = method(lambda lm, tokens, cache, new: lm.extend(lm.embed(tokens), cache, new))
    held = np.array([0, 0])
    for width, new in ((3, [3, 2]), (1, [1, 1])):
        logits, cache = extend(np.stack([TARGET[b, held[b]:held[b] + width] for b in range(2)]), cache, np.array(new))
        for b in range(2):
            np.testing.assert_allclose(logits[b, :new[b]], want[b, held[b]:held[b] + new[b]], rtol=2e-5, atol=2e-5)
        held = held + new
    swapped = cache.take(np.array([1, 0]))
    np.testing.assert_array_equal(swapped.lengths, held[::-1])
    step = np.stack([TARGET[b, held[b]:held[b] + 1] for b in (1, 0)])
    logits, _ = extend(step, swapped, np.array([1, 1]))
    np.testing.assert_allclose(logits[:, 0], [want[b, held[b]] for b in (1, 0)], rtol=2e-5, atol=2e-5)


def test_loss_is_that_of_the_logits():
    features, weights = encode(SOURCE, SOURCE_IDS), (TARGET_IDS > 0) * np.float32(0.3)
    targets = TARGET[::-1]
    loss, _ = method(lambda lm, *args: lm.loss(lm.embed(TARGET), TARGET_IDS, *args))(features, SOURCE_IDS, targets,
                                                                                    weights)
    want, _ = token_cross_entropy(run(TARGET, TARGET_IDS, features, SOURCE_IDS), targets, weights)
    assert float(loss) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.quick
def test_tokens_read_their_own_document():
    mask = same_document(np.array([[1, 2, 2, 4, 0]], np.int32), np.array([[1, 1, 2, 3, 4, 0]], np.int32))
    np.testing.assert_array_equal(mask.start[0, :4], [0, 2, 2, 4])
    np.testing.assert_array_equal(mask.stop[0, :4], [2, 3, 3, 5])
    assert mask.stop[0, 4] <= mask.start[0, 4]


@pytest.mark.quick
@pytest.mark.parametrize("fields, words", [
    (dict(num_buckets=6), "num_buckets=6 must be a multiple of 4"),
    (dict(scale_tied_logits=True), "scale_tied_logits=True needs tie_embeddings=True"),
])
def test_mistakes_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        EncoderDecoderConfig(11, 1, 1, BLOCK, **fields)
