import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import mask as masks

SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2], [0] * 8, [1] * 8])
query, key = np.arange(8)[:, None], np.arange(8)[None]
SAME = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :]) & (SEGMENTS[:, :, None] > 0)
CAUSAL = SAME & (key <= query)


def dense(mask, num_keys=8):
    chex.assert_type(list(mask), jnp.int32)
    return np.asarray(masks.to_dense(mask, num_keys))


@pytest.mark.quick
def test_causal():
    np.testing.assert_array_equal(dense(jax.jit(masks.causal)(SEGMENTS)), CAUSAL)


def test_full():
    np.testing.assert_array_equal(dense(masks.full(SEGMENTS)), SAME)


def test_full_over_spans_between_tokens_that_belong_to_none():
    spans = np.array([[0, 1, 1, 0, 0, 2, 2, 0]])
    want = (spans[:, :, None] == spans[:, None, :]) & (spans[:, :, None] > 0)
    np.testing.assert_array_equal(dense(masks.full(spans)), want)


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_sliding_window(window):
    want = CAUSAL & (key > query - window)
    np.testing.assert_array_equal(dense(masks.sliding_window(SEGMENTS, window)), want)


def test_sliding_window_refuses_an_empty_window():
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        masks.sliding_window(SEGMENTS, 0)


@pytest.mark.parametrize("prefix_len", [0, 2, 100])
def test_prefix(prefix_len):
    index_in_document = np.stack([np.arange(8) - np.searchsorted(row, row) for row in SEGMENTS[[1, 3]]])
    want = CAUSAL[[1, 3]] | (SAME[[1, 3]] & (index_in_document[:, None, :] < prefix_len))
    np.testing.assert_array_equal(dense(masks.prefix(SEGMENTS[[1, 3]], prefix_len)), want)


def test_prefix_of_its_own_length_for_every_document():
    prefix_len = np.array([[2, 2, 2, 0, 0, 1, 0, 0]])
    want = CAUSAL[:1].copy()
    want[0, 0, 1] = True  # the first document's prefix is its first two tokens
    np.testing.assert_array_equal(dense(masks.prefix(SEGMENTS[:1], prefix_len)), want)


def test_left_padded():
    pad = np.array([0, 3, 8])
    want = (key <= query) & (key >= pad[:, None, None]) & (query >= pad[:, None, None])
    np.testing.assert_array_equal(dense(masks.left_padded(pad, 8)), want)


def test_decode_continues_causal_attention_behind_each_row():
    lengths = np.array([0, 2, 5])
    want = key <= lengths[:, None, None] + np.arange(3)[:, None]
    np.testing.assert_array_equal(dense(masks.decode(lengths, 3)), want)


@pytest.mark.quick
def test_per_image_sees_one_image_and_nothing_before_the_first():
    image_index = np.array([[-1, 0, 0, 2]])
    want = np.zeros((1, 4, 9), bool)
    want[0, 1:3, 0:3] = want[0, 3, 6:9] = True
    np.testing.assert_array_equal(dense(masks.per_image(image_index, 3), 9), want)


def test_all_keys():
    np.testing.assert_array_equal(dense(masks.all_keys(2, 3, 8)), np.ones((2, 3, 8), bool))
    lengths = np.array([0, 5])
    want = np.repeat(key[None] < lengths[:, None, None], 3, 1)
    np.testing.assert_array_equal(dense(masks.all_keys(2, 3, lengths)), want)


@pytest.mark.parametrize("offset, num_keys", [(0, 3), (2, 4), (6, 2)])
def test_shift_is_a_slice_of_the_dense_mask(offset, num_keys):
    shifted = masks.shift(masks.full(SEGMENTS), offset, num_keys)
    np.testing.assert_array_equal(dense(shifted, num_keys), SAME[..., offset:offset + num_keys])
