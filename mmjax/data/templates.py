"""Templates: how a document becomes token ids with weights, one small frozen dataclass per system.

Ids, loss weights and image references are emitted together, segment by segment; nothing is ever found again by
searching the ids. A template returns an `Encoded` without pixels; which images are needed is decided later
(`packing.fit`), so that no image is decoded in vain.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.documents import Document, DocumentError, Image, Text, Video
from mmjax.data.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """One document of n tokens and i visual items.

    Attributes:
        tokens: int32[n].
        weights: float32[n] loss weight of predicting `tokens[t]` from what precedes it.
        image_index: int32[n] the visual item the position belongs to, or -1 (see `Batch`).
        slot_index: int32[n] the visual token that stands here, or -1.
        spans: int32[i, 2] half-open range of positions that each visual item occupies and that cannot be cut.
        visuals: the i images and videos, still encoded.
    """

    tokens: np.ndarray
    weights: np.ndarray
    image_index: np.ndarray
    slot_index: np.ndarray
    spans: np.ndarray
    visuals: tuple[Image | Video, ...]


class TemplateSkip(Exception):
    """The template leaves this document out on purpose; the message is the reason that is counted."""


class _Emitter:
    """Grows the columns of one document; weights and references are kept by runs of equal ones."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.runs: list[tuple[int, float, int, int]] = []     # number of tokens, weight, image_index, slot_index
        self.spans: list[tuple[int, int]] = []
        self.visuals: list[Image | Video] = []
        self.text_weight = 1.0                                # of the last text; what ends it is weighted alike

    def special(self, name: str, weight: float = 0.0, image: int = -1, slot: int = -1):
        if name:
            self.tokens.append(self.tokenizer.id(name))
            self.runs.append((1, weight, image, slot))

    def text(self, segment: Text, prefix: str = ""):
        ids = self.tokenizer.encode(prefix + segment.text)
        self.text_weight = float(segment.weight)
        self.tokens += ids
        self.runs.append((len(ids), self.text_weight, -1, -1))

    def visual(self, segment: Image | Video, start: int):
        self.visuals.append(segment)
        self.spans.append((start, len(self.tokens)))

    def finish(self) -> Encoded:
        runs = np.array(self.runs or [(0, 0, -1, -1)], np.float64)
        weights, image_index, slot_index = np.repeat(runs[:, 1:], runs[:, 0].astype(int), axis=0).T
        return Encoded(np.array(self.tokens, np.int32), weights.astype(np.float32), image_index.astype(np.int32),
                       slot_index.astype(np.int32), np.array(self.spans, np.int32).reshape(-1, 2), tuple(self.visuals))


@dataclasses.dataclass(frozen=True)
class Language:
    """Text alone: `<s> text </s>`. An empty name leaves that token out."""

    bos: str = "<s>"
    eos: str = "</s>"

    def encode(self, document: Document, tokenizer: Tokenizer, rng: np.random.Generator | None = None,
               prompt: bool = False) -> Encoded:
        """Encodes a document; see `Flamingo.encode`. Raises DocumentError if it holds an image."""
        out = _Emitter(tokenizer)
        out.special(self.bos)
        for segment in document.segments:
            if not isinstance(segment, Text):
                raise DocumentError(f"template 'language' got a {type(segment).__name__}; it takes text only")
            out.text(segment)
        if not prompt:
            out.special(self.eos, out.text_weight)
        return out.finish()


@dataclasses.dataclass(frozen=True)
class Flamingo:
    """Interleaved pages for cross-attention: `<s> <image> text <EOC> <image> text <EOC>`.

    `<EOC>` stands before every image but one that opens the document, and at the end; then comes `eos` if it
    is set. `<image>` is never a loss target. A position belongs to the last image at or before it.

    Attributes:
        bos, eos, eoc, image: names of the special tokens; an empty `bos` or `eos` leaves it out.
        p_next: probability that, in the whole document, text belongs to the next image instead; text after the
            last image then belongs to none. `<image>` itself belongs to its own image in both cases.
        prepend_space: probability that a space is put before each text that directly follows an image (one draw
            per document), for caption pairs.

    Source: Flamingo (arXiv:2204.14198), appendices A.3.1 and A.3.2.
    """

    bos: str = "<s>"
    eos: str = ""
    eoc: str = "<EOC>"
    image: str = "<image>"
    p_next: float = 0.0
    prepend_space: float = 0.0

    def encode(self, document: Document, tokenizer: Tokenizer, rng: np.random.Generator | None = None,
               prompt: bool = False) -> Encoded:
        """Encodes a document.

        Args:
            document: segments in order.
            tokenizer: must have the special tokens the template names.
            rng: draws the augmentations; None leaves them out.
            prompt: the document is unfinished: no token that ends it is emitted.

        Returns:
            The `Encoded` document.
        """
        use_next, space = (False, False) if rng is None else rng.random(2) < (self.p_next, self.prepend_space)
        out, previous = _Emitter(tokenizer), None
        out.special(self.bos)
        for segment in document.segments:
            if isinstance(segment, Text):
                out.text(segment, " " if space and previous is not None and not isinstance(previous, Text) else "")
            else:
                if previous is not None:
                    out.special(self.eoc, out.text_weight)
                out.special(self.image)
                out.visual(segment, len(out.tokens) - 1)
            previous = segment
        if not prompt:
            out.special(self.eoc, out.text_weight)
            out.special(self.eos, out.text_weight)
        encoded = out.finish()
        return encoded._replace(image_index=self._image_index(encoded, use_next))

    @staticmethod
    def _image_index(encoded: Encoded, use_next: bool) -> np.ndarray:
        n, marks = len(encoded.tokens), encoded.spans[:, 0]
        if not use_next:
            return (np.searchsorted(marks, np.arange(n), side="right") - 1).astype(np.int32)
        following = np.searchsorted(marks, np.arange(n), side="left")
        return np.where(following < len(marks), following, -1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Kosmos1:
    """Embeddings inserted into the sequence: `<s> <image> slot*R </image> text </s>`, images where they stand.

    The R slots hold the `<image>` id as a placeholder and slot_index 0 ... R-1. Nothing of the image block is a
    loss target, `</image>` included: the first target after an image is the text that follows it.

    Attributes:
        num_slots: R, the number of embeddings the connector makes of an image.
        bos, eos, image, end_image: names of the special tokens; an empty `bos` or `eos` leaves it out.
        keep_single_image: probability of keeping a document with exactly one image; 0.5 for interleaved web
            pages, 1 for caption pairs.

    Source: KOSMOS-1 (arXiv:2302.14045), sections 2.3 and 3.1; loss mask of the released LAION loader.
    """

    num_slots: int = 64
    bos: str = "<s>"
    eos: str = "</s>"
    image: str = "<image>"
    end_image: str = "</image>"
    keep_single_image: float = 1.0

    def encode(self, document: Document, tokenizer: Tokenizer, rng: np.random.Generator | None = None,
               prompt: bool = False) -> Encoded:
        """Encodes a document; see `Flamingo.encode`. Raises TemplateSkip if the page is drawn to be left out."""
        single = sum(not isinstance(s, Text) for s in document.segments) == 1
        if rng is not None and single and rng.random() >= self.keep_single_image:
            raise TemplateSkip("single-image document left out")
        out = _Emitter(tokenizer)
        out.special(self.bos)
        for segment in document.segments:
            if isinstance(segment, Text):
                out.text(segment)
            else:
                self._image_block(out, segment)
        if not prompt:
            out.special(self.eos, out.text_weight)
        return out.finish()

    def _image_block(self, out: _Emitter, segment: Image | Video):
        start = len(out.tokens)
        out.special(self.image)
        for slot in range(self.num_slots):
            out.special(self.image, image=len(out.visuals), slot=slot)
        out.special(self.end_image)
        out.visual(segment, start)


Template = Language | Flamingo | Kosmos1
TEMPLATES: dict[str, type[Template]] = {"flamingo": Flamingo, "kosmos1": Kosmos1, "language": Language}


def make_template(name: str, **options: Any) -> Template:
    """The template of that name; ValueError lists the known names, or the options it takes."""
    if name not in TEMPLATES:
        raise ValueError(f"template {name!r} is unknown; known: {', '.join(TEMPLATES)}")
    known = {f.name for f in dataclasses.fields(TEMPLATES[name])}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"template {name!r} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    template = TEMPLATES[name](**options)
    for field in ("p_next", "prepend_space", "keep_single_image"):
        if not 0 <= getattr(template, field, 0) <= 1:
            raise ValueError(f"template {name!r} {field}={getattr(template, field)} must be a probability")
    return template


def check_specials(template: Template, tokenizer: Tokenizer):
    """Raises ValueError if the tokenizer lacks a special token that the template names."""
    for field in ("bos", "eos", "eoc", "image", "end_image"):
        if name := getattr(template, field, ""):
            tokenizer.id(name)
