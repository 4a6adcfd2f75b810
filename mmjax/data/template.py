"""How a document becomes token ids with weights: one description by data, for every system (see `templates`).

Ids, loss weights and image references are emitted together, segment by segment; nothing is ever found again by
searching the ids. A template returns an `Encoded` without pixels; which images are needed is decided later
(`packing.fit`), so that no image is decoded in vain.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data import chat
from mmjax.data.documents import Document, DocumentError, Image, Segment, Text, Video
from mmjax.data.emitter import Emitter
from mmjax.data.tokenizer import Tokenizer

IMAGES = ("anywhere", "first", "none")
MAX_TEXT = 4 << 20                      # characters of a document; the tokenizers package takes 200 bytes for each


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


@dataclasses.dataclass(frozen=True)
class Template:
    """Where special tokens, slots for images and the marks of a conversation stand, and what is learned.

    A layout is text in which `{name}` stands for the special token `tokens[name]`; all else is ordinary text,
    tokenised together with the text of the document beside it where both are weighted alike. What ends something
    (`end`, `between`, `separator`, the second half of a role) is learned with the weight of the text before it;
    a position that stands for an image is never learned.

    Attributes:
        tokens: the special token of each name; "" leaves it out.
        begin, end: of a document; `end` only where the last segment has no role.
        between: before an image that does not open the document.
        before_image, after_image: round the slots of an image, or of a frame if `video_frames` is above 1.
        slot, frame_slot: placeholder of an image's slot, and of a slot of a video's frames ("" for the same).
        num_slots: R, the embeddings that stand in the sequence for an image; 0 for cross-attention.
        video_frames: F blocks of R slots make a video; 1 gives it one block, as an image.
        cross_attention: a position reads the last image at or before it, instead of standing for one itself.
        images: `anywhere`; `first`, where `begin` stands behind them; or `none`.
        learn_marks: before_image and after_image are learned as the text before them is, instead of never.
        roles: for each role what stands before and after its turn. Without any, conversations are refused.
        separator: before every turn and after the last.
        learned_roles: whose words are learned; the first of them answers a prompt.
        chat: a Jinja template of conversations that replaces `begin`, `roles` and `separator`, see `chat`.
        p_next: probability that, in the whole document, text belongs to the next image instead; text after the
            last image then belongs to none. `<image>` itself belongs to its own image in both cases.
        prepend_space: probability that a space is put before each text that directly follows an image (one draw
            per document), for caption pairs.
        keep_single_image: probability of keeping a document with exactly one image; 0.5 for interleaved web
            pages, 1 for caption pairs.
    """

    tokens: Mapping[str, str]
    begin: str = "{bos}"
    end: str = "{eos}"
    between: str = ""
    before_image: str = ""
    after_image: str = ""
    slot: str = "{image}"
    frame_slot: str = ""
    num_slots: int = 0
    video_frames: int = 1
    cross_attention: bool = False
    images: str = "anywhere"
    learn_marks: bool = False
    roles: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    separator: str = ""
    learned_roles: tuple[str, ...] = ("assistant",)
    chat: str = ""
    p_next: float = 0.0
    prepend_space: float = 0.0
    keep_single_image: float = 1.0

    def __post_init__(self):
        for field in ("p_next", "prepend_space", "keep_single_image"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"template {field}={getattr(self, field)} must be a probability")
        if self.images not in IMAGES:
            raise ValueError(f"template images={self.images!r} is unknown; known: {', '.join(IMAGES)}")
        for field, least in dict(num_slots=0, video_frames=1).items():
            if getattr(self, field) < least:
                raise ValueError(f"template {field}={getattr(self, field)} must be at least {least}")
        if self.cross_attention == bool(self.num_slots) and self.images != "none":
            raise ValueError(f"template num_slots={self.num_slots} must be 0 with cross_attention, and above 0 without")
        if self.p_next and not self.cross_attention:
            raise ValueError(f"template p_next={self.p_next} needs cross_attention: a slot stands where its image is")

    def encode(self, document: Document, tokenizer: Tokenizer, rng: np.random.Generator | None = None,
               prompt: bool = False) -> Encoded:
        """Encodes a document.

        Args:
            document: segments in order.
            tokenizer: must have the special tokens the template names.
            rng: draws the augmentations; None leaves them out.
            prompt: the document is unfinished: no token that ends it is emitted. A conversation goes on with the
                answer.

        Returns:
            The `Encoded` document.

        Raises:
            TemplateSkip: if a document with a single image is drawn to be left out, or one has more than MAX_TEXT
                characters.
            DocumentError: if the template has no place for an image or a role of the document.
        """
        use_next, space, keep = (False, False, True) if rng is None else rng.random(3) < (
            self.p_next, self.prepend_space, self.keep_single_image)
        if not keep and sum(not isinstance(s, Text) for s in document.segments) == 1:
            raise TemplateSkip("single-image document left out")
        if (size := sum(len(s.text) for s in document.segments if isinstance(s, Text))) > MAX_TEXT:
            raise TemplateSkip(f"the document has {size} characters; {MAX_TEXT} are the limit")
        out = Emitter(tokenizer, self.tokens)
        writer = _Writer(self, out, space)
        if self.chat and any(s.role for s in document.segments):
            chat.write(self, document.segments, writer, prompt)
        else:
            writer.document(document.segments, prompt)
        encoded = Encoded(*out.finish(), tuple(out.visuals))
        return encoded._replace(image_index=_last_image(encoded, use_next)) if self.cross_attention else encoded


class _Writer:
    """Writes one document by a template."""

    def __init__(self, template: Template, out: Emitter, space: bool):
        self.template, self.out = template, out
        self._space, self._previous = space, None
        self.weight = 1.0                                   # of the last text; what ends it is weighted alike
        self._ending = ""                                   # of the last turn, owed until it is known to be over

    def document(self, segments: Sequence[Segment], prompt: bool):
        t, role = self.template, ""
        start = next((i for i, s in enumerate(segments) if isinstance(s, Text)), len(segments))
        opening = segments[:start] if t.images == "first" else ()
        for segment in opening:
            self.segment(segment)
        self.out.layout(t.begin, 0.0)
        for role, turn in itertools.groupby(segments[len(opening):], key=lambda s: s.role):
            self._turn(role, list(turn))
        if prompt:
            self._open_answer(role)
        else:
            self._close()
            self.out.layout(t.separator if role else t.end, self.weight)

    def segment(self, segment: Segment, learned: bool = True):
        """Writes a text, or the slots of an image."""
        if isinstance(segment, Text):
            after_image = self._previous is not None and not isinstance(self._previous, Text)
            self.weight = float(segment.weight) * learned
            self.out.text((" " if self._space and after_image else "") + segment.text, self.weight)
        else:
            self._visual(segment)
        self._previous = segment

    def _turn(self, role: str, segments: Sequence[Segment]):
        t, first = self.template, self._previous is None
        if role and role not in t.roles:
            raise DocumentError(f"the template has no role {role!r}; it has {', '.join(t.roles) or 'none at all'}")
        before, after = t.roles[role] if role else ("", "")
        self._close()
        if role:
            self.out.layout(t.separator, 0.0 if first else self.weight)
            self.out.layout(before, 0.0)
        learned = not role or role in t.learned_roles
        self.weight = self.weight if not role else float(learned)
        for segment in segments:
            self.segment(segment, learned)
        self._ending = after

    def _close(self):
        self.out.layout(self._ending, self.weight)
        self._ending = ""

    def _open_answer(self, role: str):
        t = self.template
        if role and role not in t.learned_roles:
            self._close()
            self.out.layout(t.separator + t.roles[t.learned_roles[0]][0], 0.0)

    def _visual(self, segment: Image | Video):
        t, out = self.template, self.out
        if t.images == "none" or t.images == "first" and isinstance(self._previous, Text):
            raise DocumentError(f"the template got a {type(segment).__name__}; it takes "
                                f"{'text only' if t.images == 'none' else 'images only before the text'}")
        if self._previous is not None:
            out.layout(t.between, self.weight)
        marks = self.weight if t.learn_marks else 0.0
        blocks = t.video_frames if isinstance(segment, Video) else 1
        slot = t.frame_slot if t.frame_slot and isinstance(segment, Video) else t.slot
        out.open_visual(segment)
        for block in range(blocks):
            out.layout(t.before_image, marks)
            out.slots(slot, t.num_slots, block * t.num_slots)
            out.layout(t.after_image, marks)
        out.close_visual()


def _last_image(encoded: Encoded, use_next: bool) -> np.ndarray:
    """int32[n]: the last image at or before each position, or the next at or after it; -1 where there is none."""
    n, marks = len(encoded.tokens), encoded.spans[:, 0]
    if not use_next:
        return (np.searchsorted(marks, np.arange(n), side="right") - 1).astype(np.int32)
    following = np.searchsorted(marks, np.arange(n), side="left")
    return np.where(following < len(marks), following, -1).astype(np.int32)
