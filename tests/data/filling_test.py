"""Rows are as good as full, whole, within both budgets, and nothing waits for ever."""

import numpy as np
import pytest

from mmjax.data.filling import Filler


def fill(sizes, seq_len, images_per_row, buffer):
    """Rows of document numbers, and the longest that one waited, in documents that came after it."""
    filler, rows, waited, come = Filler(seq_len, images_per_row), [], 0, 0
    while come < len(sizes) or len(filler):
        while len(filler) < buffer and come < len(sizes):
            filler.add(come, *sizes[come])
            come += 1
        rows.append(filler.take_row())
        waited = max(waited, come - min(rows[-1]))
    return rows, waited


def web_pages(count, images=2, longest=2048):
    """Log-normal lengths with median 245 and Poisson images, as web pages have."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(245), 1, count)), 1, longest).astype(int)
    return list(zip(lengths.tolist(), np.minimum(rng.poisson(images, count), 16).tolist(), strict=True))


@pytest.mark.quick
def test_web_pages_fill_rows():
    sizes = web_pages(4000)
    rows, waited = fill(sizes, 2048, 16, 256)
    assert len(rows) == -(-sum(tokens for tokens, _ in sizes) // 2048), "more rows than tokens need at least"
    assert waited < 2 * 256


@pytest.mark.quick
@pytest.mark.parametrize("seq_len, images_per_row, longest, images", [(64, 6, 40, 3), (64, 0, 40, 0), (50, 2, 50, 2),
                                                                      (100, 30, 5, 9)])
def test_rows_keep_to_both_budgets_and_hold_every_document_once(seq_len, images_per_row, longest, images):
    rng = np.random.default_rng(0)
    for buffer in (1, 2, 7, 60):
        sizes = [(int(rng.integers(1, longest + 1)), int(rng.integers(0, min(images, images_per_row) + 1)))
                 for _ in range(150)]
        rows, waited = fill(sizes, seq_len, images_per_row, buffer)
        assert sorted(n for row in rows for n in row) == list(range(150))
        assert all(sum(sizes[n][0] for n in row) <= seq_len for row in rows)
        assert all(sum(sizes[n][1] for n in row) <= images_per_row for row in rows)
        assert waited <= buffer * (1 + seq_len)         # a row takes the oldest; so in `buffer` rows it is its turn


def test_where_images_are_short_they_are_what_is_filled():
    rows, _ = fill(sizes := web_pages(4000, images=5), 2048, 16, 256)
    assert sum(images for _, images in sizes) / len(rows) / 16 > 0.9


@pytest.mark.quick
def test_a_row_begins_with_the_oldest_and_ends_exactly():
    filler = Filler(100, 3)
    for key, tokens, images in (("a", 60, 1), ("b", 50, 0), ("c", 30, 3), ("d", 25, 1), ("e", 15, 1), ("f", 14, 0)):
        filler.add(key, tokens, images)
    assert filler.waiting() == tuple("abcdef")
    assert filler.take_row() == ["a", "d", "e"]         # c has too many images beside a
    assert filler.take_row() == ["b", "c", "f"]
    assert filler.take_row() == [] and len(filler) == 0


def test_what_waits_is_all_there_is_to_save():
    sizes, whole, half = web_pages(600), Filler(2048, 16), Filler(2048, 16)
    for n, size in enumerate(sizes):
        whole.add(n, *size)
        if n % 7 == 6:
            whole.take_row()
    for n in whole.waiting():
        half.add(n, *sizes[n])
    while row := whole.take_row():
        assert half.take_row() == row


def test_what_fits_no_row_is_refused():
    filler = Filler(10, 1)
    filler.add("a", 10, 1)
    for key, tokens, images in (("b", 11, 0), ("b", 0, 0), ("b", 1, 2), ("a", 1, 0)):
        with pytest.raises(ValueError, match=f"document '{key}' of {tokens} tokens and {images} images: a row has 10"):
            filler.add(key, tokens, images)
