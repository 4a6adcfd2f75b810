"""Packing: documents cut to size, and laid into rows with a fixed number of tokens and of images.

A document goes into one row whole or, if it is longer than it may be, is cut by a declared policy; its images travel
with it. Which documents share a row is decided in `filling`.
"""

from collections.abc import Sequence

import numpy as np

from mmjax.batch import Batch
from mmjax.data.documents import Document
from mmjax.data.images import ImageSpec, decode_visuals
from mmjax.data.templates import Encoded, Template
from mmjax.data.tokenizer import Tokenizer

POLICIES = ("truncate", "window", "drop")
Features = dict[str, np.ndarray]


class TooLong(ValueError):
    """A document has more tokens or images than it may, and the policy is to drop it."""


def fit(encoded: Encoded, max_tokens: int, max_images: int, policy: str,
        rng: np.random.Generator | None = None) -> tuple[Encoded, bool]:
    """Cuts a document to what it may hold, never through an image's tokens.

    Args:
        encoded: the document.
        max_tokens: tokens it may have.
        max_images: visual items it may have; it ends where the next one would begin.
        policy: for documents that are larger: `truncate` keeps the beginning, `window` a random stretch of
            max_tokens (the beginning if `rng` is None), `drop` raises.
        rng: draws the window.

    Returns:
        The document, its positions that refer to an image cut away set to -1, and whether it was cut.

    Raises:
        TooLong: under `drop`, or if nothing with a loss weight would be left of a document that had some.
    """
    n, spans = len(encoded.tokens), encoded.spans
    if n <= max_tokens and len(spans) <= max_images:
        return encoded, False
    if policy == "drop":
        raise TooLong(f"{n} tokens and {len(spans)} images; a document may have {max_tokens} and {max_images}")
    start = 0
    if policy == "window" and rng is not None and n > max_tokens:
        start = int(rng.integers(0, n - max_tokens + 1))
        start = next((int(e) for s, e in spans if s < start < e), start)
    stop = next((int(s) for s, e in spans if s < start + max_tokens < e), min(n, start + max_tokens))
    kept = np.flatnonzero((spans[:, 0] >= start) & (spans[:, 1] <= stop))
    if len(kept) > max_images:
        stop, kept = int(spans[kept[max_images], 0]), kept[:max_images]
    renumber = np.full(len(spans) + 1, -1, np.int32)          # entry -1 keeps "no image"
    renumber[kept] = np.arange(len(kept))
    cut = Encoded(encoded.tokens[start:stop], encoded.weights[start:stop],
                  renumber[encoded.image_index[start:stop]], encoded.slot_index[start:stop],
                  spans[kept] - start, tuple(encoded.visuals[i] for i in kept))
    if not cut.weights[1:].any() and encoded.weights[1:].any():
        raise TooLong(f"of {n} tokens and {len(spans)} images nothing to learn fits in {max_tokens} and {max_images}")
    return cut, True


def to_features(encoded: Encoded, images: np.ndarray) -> Features:
    """Shifts tokens to targets: `targets[t]` and `loss_weights[t]` are those of token t + 1, 0 at the end.

    Returns:
        dict of tokens, targets, image_index, slot_index int32[n], loss_weights float32[n] and the images.
    """
    return dict(tokens=encoded.tokens, targets=np.append(encoded.tokens[1:], np.int32(0)),
                loss_weights=np.append(encoded.weights[1:], np.float32(0)), image_index=encoded.image_index,
                slot_index=encoded.slot_index, images=images)


def encode_document(document: Document, template: Template, tokenizer: Tokenizer, image: ImageSpec, frames: int = 1,
                    prompt: bool = False) -> Features:
    """A document as features, without augmentation or limits: for evaluation and generation.

    Args:
        document: segments in order.
        template: see `templates`.
        tokenizer: has the template's special tokens.
        image: how pixels are made.
        frames: F frames per visual item.
        prompt: the document is unfinished; nothing that ends it is emitted.

    Returns:
        What `to_features` gives, images uint8[i, F, size, size, 3].
    """
    encoded = template.encode(document, tokenizer, prompt=prompt)
    return to_features(encoded, decode_visuals(encoded.visuals, image, frames))


def empty_batch(rows: int, seq_len: int, images_per_row: int, image_shape: tuple[int, int, int, int]) -> Batch:
    """B rows of padding.

    Args:
        rows: B.
        seq_len: T.
        images_per_row: I.
        image_shape: (F, H, W, 3).
    """
    def ints(value: int) -> np.ndarray:
        return np.full((rows, seq_len), value, np.int32)

    return Batch(tokens=ints(0), targets=ints(0), loss_weights=np.zeros((rows, seq_len), np.float32),
                 segment_ids=ints(0), positions=ints(0), image_index=ints(-1), slot_index=ints(-1),
                 images=np.zeros((rows, images_per_row, *image_shape), np.uint8),
                 image_segment_ids=np.zeros((rows, images_per_row), np.int32))


def lay_row(batch: Batch, r: int, row: Sequence[Features]) -> None:
    """Lays documents into row `r` of a batch, in order, right-padded.

    Args:
        batch: arrays, the row as `empty_batch` made it.
        r: which row.
        row: its documents, as of `to_features`.

    Raises:
        ValueError: if they have more than T tokens or I images together.
    """
    start = first = 0
    for segment, features in enumerate(row, 1):
        stop, last = start + len(features["tokens"]), first + len(features["images"])
        if stop > batch.tokens.shape[1] or last > batch.images.shape[1]:
            raise ValueError(f"row {r} needs {stop} tokens and {last} images or more; "
                             f"seq_len={batch.tokens.shape[1]} and images_per_row={batch.images.shape[1]}")
        here = slice(start, stop)
        for name in ("tokens", "targets", "loss_weights", "slot_index"):
            getattr(batch, name)[r, here] = features[name]
        local = features["image_index"]
        batch.image_index[r, here] = np.where(local >= 0, local + first, -1)
        batch.segment_ids[r, here] = segment
        batch.positions[r, here] = np.arange(stop - start)
        batch.images[r, first:last] = features["images"]
        batch.image_segment_ids[r, first:last] = segment
        start, first = stop, last


def pack_rows(rows: Sequence[Sequence[Features]], seq_len: int, images_per_row: int) -> Batch:
    """Lays given documents into given rows, see `lay_row`.

    Args:
        rows: for each of the B rows its documents, as of `to_features`.
        seq_len: T.
        images_per_row: I.

    Returns:
        The `Batch`.

    Raises:
        ValueError: if a row's documents have more than T tokens or I images together, or image shapes differ.
    """
    shapes = {features["images"].shape[1:] for row in rows for features in row}
    if len(shapes) != 1:
        raise ValueError(f"documents of one batch must have one image shape; got {sorted(shapes)}")
    batch = empty_batch(len(rows), seq_len, images_per_row, shapes.pop())
    for r, row in enumerate(rows):
        lay_row(batch, r, row)
    return batch


def single_document_rows(documents: Sequence[Features], seq_len: int, images_per_row: int) -> Batch:
    """One document per row, right-padded: the layout of `prefill` and of scoring. See `pack_rows`."""
    return pack_rows([[features] for features in documents], seq_len, images_per_row)
