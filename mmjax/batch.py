"""The contract between data and models: one packed batch.

The data floor fills a `Batch` with NumPy arrays, the models read it as JAX arrays. It is a plain
`NamedTuple`, so it is a pytree without this file knowing JAX.

Axes: B rows, T tokens per row, I visual items (images or videos) per row, F frames per visual item.
"""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """B packed rows. A row holds one or more whole documents and padding at its end.

    Attributes:
        tokens: int32[B, T] input token ids. Positions that hold a visual embedding carry a placeholder id.
        targets: int32[B, T] the token that follows `tokens[b, t]` in its document.
        loss_weights: float32[B, T] weight of predicting `targets[b, t]`; 0 on padding, on the last token
            of a document, and wherever the target is not to be learned (image placeholders, prompts).
        segment_ids: int32[B, T] 1, 2, ... for the documents of the row in order, 0 on padding.
        positions: int32[B, T] position inside the document, from 0; 0 on padding.
        image_index: int32[B, T] which of the row's I visual items this position belongs to, or -1.
            Cross-attention (Flamingo) reads this item; an inserted embedding (KOSMOS-1) comes from it.
        slot_index: int32[B, T] which visual token of that item stands at this position in place of a
            text embedding, or -1 for text. Always -1 in systems that join by cross-attention.
        images: uint8[B, I, F, H, W, 3] RGB pixels, 0 in unused slots. Normalisation is the model's.
        image_segment_ids: int32[B, I] the document each visual item belongs to, 0 for an unused slot.
    """

    tokens: Any
    targets: Any
    loss_weights: Any
    segment_ids: Any
    positions: Any
    image_index: Any
    slot_index: Any
    images: Any
    image_segment_ids: Any
