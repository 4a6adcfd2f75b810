"""Grows the columns of one document: token ids, and weights and image references by runs of equal ones."""

import re
from collections.abc import Mapping

import numpy as np

from mmjax.data.documents import Image, Video
from mmjax.data.tokenizer import Tokenizer

_NAME = re.compile(r"\{(\w+)\}")


class Emitter:
    """Takes special tokens, slots and text in order.

    Text that is laid out by a template is held back until it is known what follows, to be tokenised in one piece with
    the text of a segment that is weighted alike. Two segments are never joined.
    """

    def __init__(self, tokenizer: Tokenizer, names: Mapping[str, str]):
        self._tokenizer, self._names, self.specials = tokenizer, names, tokenizer.special
        self._tokens: list[int] = []
        self._runs: list[tuple[int, float, int, int]] = []     # number of tokens, weight, image_index, first slot
        self._text, self._text_weight, self._holds_segment = "", 0.0, False
        self._spans: list[list[int]] = []
        self._inside = False                                    # an open item
        self.visuals: list[Image | Video] = []

    def layout(self, layout: str, weight: float):
        """Text in which `{name}` is the special token of that name."""
        if not layout:
            return
        for k, part in enumerate(_NAME.split(layout)):
            if k % 2:
                self.special(self._names[part], weight)
            elif part:
                self._hold(part, weight)

    def special(self, token: str, weight: float):
        """A special token; "" is none."""
        if token:
            self._flush()
            self._add([self._tokenizer.id(token)], weight)

    def text(self, text: str, weight: float):
        """The text of a segment."""
        if self._holds_segment:
            self._flush()
        self._hold(text, weight)
        self._holds_segment = True

    def open_visual(self, visual: Image | Video):
        """What follows belongs to this item; its span reaches from its first special token or slot to its last."""
        self.visuals.append(visual)
        self._spans.append([])
        self._inside = True

    def slots(self, token: str, count: int, first: int):
        """`count` slots of the open item, numbered from `first`; the token is a layout, but a single special one."""
        if count:
            self._flush()
            name = self._names[_NAME.fullmatch(token)[1]]
            self._add([self._tokenizer.id(name)] * count, 0.0, len(self.visuals) - 1, first)

    def close_visual(self):
        """Ends the item. One without any token has an empty span where it stands."""
        self._inside = False
        if not self._spans[-1]:
            self._flush()
            self._spans[-1] = [len(self._tokens)] * 2

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """tokens, weights, image_index, slot_index and spans, as `Encoded` has them."""
        self._flush()
        counts, weights, images, slots = zip(*self._runs, strict=True) if self._runs else ((0,), (0.0,), (-1,), (-1,))
        slot_index = np.repeat(np.array(slots, np.int32), counts)
        if max(slots) >= 0:
            ends = np.cumsum(counts, dtype=np.int32)
            within = np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - np.array(counts, np.int32), counts)
            slot_index = np.where(slot_index < 0, slot_index, slot_index + within)
        return (np.array(self._tokens, np.int32), np.repeat(np.array(weights, np.float32), counts),
                np.repeat(np.array(images, np.int32), counts), slot_index,
                np.array(self._spans, np.int32).reshape(-1, 2))

    def _hold(self, text: str, weight: float):
        if weight != self._text_weight:
            self._flush()
        self._text, self._text_weight = self._text + text, weight

    def _flush(self):
        if self._text:
            ids = self._tokenizer.encode(self._text)
            self._tokens += ids
            self._runs.append((len(ids), self._text_weight, -1, -1))
        self._text, self._holds_segment = "", False

    def _add(self, ids: list[int], weight: float, image: int = -1, slot: int = -1):
        start = len(self._tokens)
        self._tokens += ids
        self._runs.append((len(ids), weight, image, slot))
        if self._inside:
            span = self._spans[-1]
            span[:] = [span[0] if span else start, len(self._tokens)]
