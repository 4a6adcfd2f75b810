import numpy as np
import pytest

from mmjax.data import packing
from mmjax.data.documents import Document, Image, Text, Video
from mmjax.data.inspect import peek
from mmjax.data.templates import make_template
from mmjax.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
PAGE = Document((Text("é ", 0.0), Image(b"a"), Text("two"), Image(b"b"), Text("x\ny", 0.5)))


def row(*encoded, seq_len=64, images=4, frames=1):
    """One row; image k of the row is a square of grey level 40 (k + 1)."""
    features, k = [], 0
    for e in encoded:
        levels = 40 * np.arange(k + 1, k + 1 + len(e.visuals), dtype=np.uint8)
        k += len(e.visuals)
        pixels = np.broadcast_to(levels[:, None, None, None, None], (len(levels), frames, 8, 8, 3))
        features.append(packing.to_features(e, pixels))
    return packing.pack_rows([features], seq_len, images)


@pytest.mark.quick
def test_pieces_of_a_page_for_cross_attention():
    template = make_template("flamingo")
    batch = row(template.encode(PAGE, TOKENIZER), template.encode(Document((Image(b"c"), Text("z"))), TOKENIZER))
    got = [(p.kind, p.text, p.weight, p.segment, p.image) for p in peek.pieces(batch, 0, TOKENIZER, ["<image>"])]
    assert got == [
        ("special", "<s>", 0, 1, -1), ("text", "é ", 0, 1, -1), ("special", "<EOC>", 0, 1, -1),
        ("special", "<image>", 0, 1, -1), ("image", "", 0, 1, 0), ("text", "two", 1, 1, 0),
        ("special", "<EOC>", 1, 1, -1),
        ("special", "<image>", 0, 1, -1), ("image", "", 0, 1, 1), ("text", "x\ny", 0.5, 1, 1),
        ("special", "<EOC>", 0.5, 1, -1), ("special", "<s>", 0, 2, -1), ("special", "<image>", 0, 2, -1),
        ("image", "", 0, 2, 2), ("text", "z", 1, 2, 2), ("special", "<EOC>", 1, 2, -1),
        ("padding", "45 free", 0, 0, -1)]
    assert peek.title(batch, 0) == "19 of 64 tokens (29.7%), 2 documents, 3 of 4 images, 10 tokens learned"


def test_pieces_with_slots():
    batch = row(make_template("kosmos1", num_slots=3).encode(PAGE, TOKENIZER))
    shown = [(p.text, p.image) for p in peek.pieces(batch, 0, TOKENIZER, ["<image>"]) if p.kind == "image"]
    assert shown == [("3 slots", 0), ("3 slots", 1)]


def test_frames_with_slots_of_their_own():
    names = byte_tokenizer(("<s>", "</s>", "<image>", "[IMG]", "[/IMG]", "[gIMG]"))
    template = make_template("emu2", num_slots=3, video_frames=2)
    batch = row(template.encode(Document((Video((b"a", b"b")), Image(b"c"))), names), frames=2)
    shown = [(p.image, p.frame) for p in peek.pieces(batch, 0, names) if p.kind == "image"]
    assert shown == [(0, 0), (0, 1), (1, -1)]


def test_the_sheet_shows_images_texts_and_weights():
    template = make_template("flamingo")
    batch = row(template.encode(PAGE, TOKENIZER))
    sheet = np.asarray(peek.draw_sheet(dict(pages=batch), TOKENIZER, 2, dict(pages=["<image>"]), peek.Style(600, 50)))
    assert sheet.shape[1] == 600
    for level in (40, 80):                                                  # both thumbnails, whole
        assert (sheet == level).all(-1).sum() >= 50 * 50
    learned = (sheet == (0x1a, 0x6b, 0x2f)).all(-1).sum()
    mute = batch._replace(loss_weights=np.zeros_like(batch.loss_weights))
    silent = np.asarray(peek.draw_sheet(dict(pages=mute), TOKENIZER, 2, dict(pages=["<image>"]), peek.Style(600, 50)))
    assert learned > (silent == (0x1a, 0x6b, 0x2f)).all(-1).sum() > 0      # only the legend's are left


def test_long_text_hostile_text_and_videos_stay_on_the_sheet():
    text = "word " * 60 + "x" * 300 + "\n\n" + "\u202e\u0000\ufeff日本\U0001f600"
    e = make_template("kosmos1", num_slots=1).encode(Document((Video((b"a", b"b")), Text(text))), TOKENIZER)
    batch = row(e, seq_len=700, images=1, frames=2)
    batch.images[0, 0, 1] = 200
    sheet = np.asarray(peek.draw_sheet(dict(a=batch, b=batch), TOKENIZER, 1, {}))
    assert (sheet[:, -10:] == 255).all() and (sheet[-5:] == 255).all()
    assert (sheet == 200).all(-1).sum() >= 2 * 96 * 96 and (sheet == 40).all(-1).sum() >= 2 * 96 * 96
