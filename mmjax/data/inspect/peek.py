"""A contact sheet of packed rows: images in place, text, a colour for each document, and what is learned."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmjax.batch import Batch
from mmjax.data.tokenizer import Tokenizer

_PAPERS = ("#dbe9f6", "#fde6ce", "#ddf0d9", "#f9dcdc", "#e8e0f0", "#ece3da", "#fbe3f1", "#eef0c8")
_INK, _PALE, _LEARNED, _GREY = "#101010", "#6f7377", "#1a6b2f", "#8a8f94"
_MARGIN, _LINE, _GAP = 12, 22, 3


class Piece(NamedTuple):
    """Something that is drawn at one place: text, the name of a special token, or an image.

    Attributes:
        kind: text, special, image or padding.
        text: to be drawn; under an image.
        weight: loss weight of predicting it.
        segment: its document, 0 for padding.
        image: of the row that is shown here or, for text, read by cross-attention; -1 for none.
        frame: of a video, if the slots are those of one frame; -1 for all.
    """

    kind: str
    text: str
    weight: float
    segment: int
    image: int = -1
    frame: int = -1


@dataclasses.dataclass(frozen=True)
class Style:
    """Sizes in pixels: of the sheet, of an image, of its letters."""

    width: int = 1280
    thumb: int = 96
    letters: int = 13


def pieces(batch: Batch, r: int, tokenizer: Tokenizer, marks: Sequence[str] = ()) -> Iterator[Piece]:
    """The pieces of row `r` of a batch, in order.

    Args:
        batch: NumPy arrays.
        r: the row.
        tokenizer: of its tokens.
        marks: special tokens that stand for an image where cross-attention reads it; the first of a document is its
            first image.
    """
    names = {i: name for name, i in tokenizer.special.items()}
    marks = {tokenizer.special[m] for m in marks if m in tokenizer.special}
    tokens, segments, slots = batch.tokens[r], batch.segment_ids[r], batch.slot_index[r]
    weights = np.append(np.float32(0), batch.loss_weights[r][:-1])          # those of the targets, one place on
    unshown = {s: list(np.flatnonzero(batch.image_segment_ids[r] == s)) for s in np.unique(segments)}
    in_slots = {s for s in np.unique(segments) if ((slots >= 0) & (segments == s)).any()}
    reads = batch.image_index[r]

    def key(t: int):
        s = int(segments[t])
        if not s:
            return "padding", 0, 0.0, -1
        if slots[t] >= 0:
            return "image", s, 0.0, int(reads[t])
        if int(tokens[t]) in names:
            return "special", s, float(weights[t]), t
        return "text", s, float(weights[t]), int(reads[t])

    for (kind, s, weight, which), run in itertools.groupby(range(len(tokens)), key):
        places = list(run)
        if kind == "image":
            is_part = len(places) < np.count_nonzero((reads == which) & (slots >= 0))
            yield Piece(kind, f"{len(places)} slots", 0.0, s, which,
                        int(slots[places[0]]) // len(places) if is_part else -1)
        elif kind == "padding":
            yield Piece(kind, f"{len(places)} free", 0.0, 0)
        elif kind == "special":
            yield Piece(kind, names[int(tokens[which])], weight, s)
            if int(tokens[which]) in marks and s not in in_slots and unshown[s]:
                yield Piece("image", "", 0.0, s, int(unshown[s].pop(0)))
        else:
            yield Piece(kind, tokenizer.decode(tokens[places]), weight, s, which)


def title(batch: Batch, r: int) -> str:
    """What a row holds, in one line."""
    segments, images = batch.segment_ids[r], batch.image_segment_ids[r]
    used, learned = np.count_nonzero(segments), np.count_nonzero(batch.loss_weights[r])
    return (f"{used} of {len(segments)} tokens ({used / len(segments):.1%}), {segments.max()} documents, "
            f"{np.count_nonzero(images)} of {len(images)} images, {learned} tokens learned")


def draw_sheet(batches: dict[str, Batch], tokenizer: Tokenizer, rows: int, marks: dict[str, Sequence[str]],
               style: Style = Style()) -> Image.Image:
    """Draws the first rows of every data set under one another.

    Args:
        batches: {data set: batch}.
        tokenizer: of all.
        rows: of each data set.
        marks: {data set: special tokens that stand for an image}, see `pieces`.
        style: sizes.

    Returns:
        An RGB image.
    """
    bands = [_legend(style)]
    for name, batch in batches.items():
        for r in range(min(rows, len(batch.tokens))):
            bands.append(_draw_row(f"{name}, row {r}: {title(batch, r)}", batch, r,
                                   list(pieces(batch, r, tokenizer, marks.get(name, ()))), style))
    sheet = Image.new("RGB", (style.width, sum(b.height for b in bands)), "white")
    y = 0
    for band in bands:
        sheet.paste(band, (0, y))
        y += band.height
    return sheet


class _Page:
    """A band that grows downwards; pieces are set from left to right in lines."""

    def __init__(self, heading: str, style: Style):
        self.style, self.font = style, _font(style.letters)
        self.image = Image.new("RGB", (style.width, 4 * _LINE), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.draw.text((_MARGIN, _GAP), heading, _INK, _font(style.letters, bold=True))
        self.x, self.y, self.line = _MARGIN, _GAP + _LINE, _LINE

    def new_line(self):
        if self.x > _MARGIN:
            self.x, self.y, self.line = _MARGIN, self.y + self.line + _GAP, _LINE

    def next_document(self):
        """Leaves a gap, or the line if there is little left of it."""
        self.x += 2 * _MARGIN * (self.x > _MARGIN)
        if self.x > 0.7 * self.style.width:
            self.new_line()

    def room(self, width: float, height: int = _LINE) -> tuple[float, float]:
        """A place for a box; in the next line if this one is full."""
        if self.x + width > self.style.width - _MARGIN:
            self.new_line()
        self.line = max(self.line, height)
        self._grow(self.y + self.line + _GAP)
        place = self.x, self.y
        self.x += width
        return place

    def _grow(self, bottom: float):
        if bottom > self.image.height:
            larger = Image.new("RGB", (self.image.width, int(bottom) + 10 * _LINE), "white")
            larger.paste(self.image)
            self.image, self.draw = larger, ImageDraw.Draw(larger)

    def finish(self) -> Image.Image:
        self.new_line()
        return self.image.crop((0, 0, self.image.width, int(self.y + _GAP + _MARGIN)))


def _draw_row(heading: str, batch: Batch, r: int, found: Sequence[Piece], style: Style) -> Image.Image:
    page, segment, shown = _Page(heading, style), 0, -1
    for piece in found:
        if piece.segment != segment:
            page.next_document()
            segment, shown = piece.segment, -1
        paper = _PAPERS[(segment - 1) % len(_PAPERS)] if segment else "#ffffff"
        if piece.kind == "image":
            frames = batch.images[r, piece.image]
            if 0 <= piece.frame < len(frames):
                frames = frames[piece.frame:piece.frame + 1]
            _put_image(page, frames, f"image {piece.image}  {piece.text}".strip(), paper)
            shown = piece.image if not piece.text else -1           # slots are not read again by what follows
        elif piece.kind == "text":
            if piece.image != shown:
                _put_box(page, Piece("special", _reads(piece.image), 0.0, segment), "#ffffff")
                shown = piece.image
            _put_text(page, piece, paper)
        else:
            _put_box(page, piece, paper)
    return page.finish()


def _reads(image: int) -> str:
    return f"reads image {image}" if image >= 0 else "reads none"


def _legend(style: Style) -> Image.Image:
    page = _Page("packed rows", style)
    for piece in (Piece("text", "learned,", 1.0, 1), Piece("text", " half as much,", 0.5, 1),
                  Piece("text", " not at all;", 0.0, 1), Piece("special", "special token", 0.0, 1)):
        (_put_text if piece.kind == "text" else _put_box)(page, piece, _PAPERS[0])
    _put_text(page, Piece("text", "the next document", 1.0, 2), _PAPERS[1])
    return page.finish()


def _put_text(page: _Page, piece: Piece, paper: str):
    for line in piece.text.replace("\r", "").splitlines(keepends=True) or [""]:
        for word in _words(line, page.font, page.style.width - 2 * _MARGIN):
            width = page.font.getlength(word)
            x, y = page.room(width)
            page.draw.rectangle((x, y, x + width, y + _LINE - 1), paper)
            page.draw.text((x, y + 2), word, _INK if piece.weight else _PALE, page.font)
            _underline(page, x, y, width, piece.weight)
        if line.endswith("\n"):
            page.new_line()


def _put_box(page: _Page, piece: Piece, paper: str):
    width = page.font.getlength(piece.text) + 8
    x, y = page.room(width + 2)
    page.draw.rounded_rectangle((x + 1, y + 2, x + width - 1, y + _LINE - 4), 4, paper, _GREY)
    page.draw.text((x + 4, y + 2), piece.text, _INK if piece.weight else _PALE, page.font)
    _underline(page, x + 2, y, width - 4, piece.weight)


def _put_image(page: _Page, frames: np.ndarray, caption: str, paper: str):
    side = page.style.thumb
    shown = frames[:1] if (frames == frames[:1]).all() else frames
    fit = max(1, (page.style.width - 2 * _MARGIN) // (side + 2))
    shown = shown[np.linspace(0, len(shown) - 1, min(len(shown), fit)).astype(int)]
    width = max(len(shown) * (side + 2), page.font.getlength(caption)) + 6
    x, y = page.room(width, side + _LINE + 4)
    page.draw.rectangle((x, y, x + width - 3, y + side + _LINE), paper)
    for k, frame in enumerate(shown):
        page.image.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC),
                         (int(x) + 2 + k * (side + 2), int(y) + 2))
    page.draw.text((x + 3, y + side + 3), caption, _PALE, page.font)


def _underline(page: _Page, x: float, y: float, width: float, weight: float):
    if weight:
        thick = int(np.clip(round(2 * weight), 1, 4))
        page.draw.rectangle((x, y + _LINE - 1 - thick, x + width - 1, y + _LINE - 2), _LEARNED)


def _words(line: str, font: ImageFont.FreeTypeFont, widest: float) -> Iterator[str]:
    """Words with the space behind them; what is wider than the page is cut."""
    for word in filter(None, itertools.chain.from_iterable(w.partition(" ")[:2] for w in _split(line))):
        while font.getlength(word) > widest:
            most = max(1, int(len(word) * widest / font.getlength(word)) - 1)
            yield word[:most]
            word = word[most:]
        yield word


def _split(line: str) -> Iterator[str]:
    visible = line.removesuffix("\n") + ("\u21b5" if line.endswith("\n") else "")
    start = 0
    for k, letter in enumerate(visible):
        if letter == " ":
            yield visible[start:k + 1]
            start = k + 1
    yield visible[start:]


@functools.lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its fonts, which have more letters than Pillow's own
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
