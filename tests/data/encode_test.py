"""Every outcome of a record, and randomness that belongs to the draw."""

import io

import numpy as np
import pytest
from PIL import Image as pil

from mmjax.data.config import DataSetConfig, Source
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.data.encode import Encoder
from mmjax.data.images import ImageSpec
from mmjax.data.mixture import Draw
from mmjax.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def png(shade, side=8):
    out = io.BytesIO()
    pil.fromarray(np.full((side, side, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


def encoder(tmp_path, documents, **settings):
    write_documents(tmp_path / "x.array_record", documents)
    config = DataSetConfig((Source(tmp_path),), 1, 32, **settings)
    return Encoder(config, [config.sources[0].open()], TOKENIZER, seed=0)


def outcomes(tmp_path, documents, **settings):
    items = map(encoder(tmp_path, documents, **settings), (Draw(0, 0, i) for i in range(len(documents))))
    return [(item.outcome, item.encoded and (len(item.encoded.tokens), len(item.encoded.visuals))) for item in items]


@pytest.mark.quick
def test_every_outcome(tmp_path):
    ok, image = Document((Image(png(1)), Text("ok"))), dict(images_per_row=2, image=ImageSpec(size=4),
                                                            template="flamingo")
    big = Document((Image(png(1)), Text("x" * 99)))
    empty = Document((Image(b""), Text("cut")))
    web = Document((Text("a"), Image(b"<html>"), Text("b")))
    assert outcomes(tmp_path, [ok, big, empty, web], **image) == [
        ("kept", (5, 1)), ("truncated", (32, 1)), *[("not a JPEG, PNG, WebP or GIF image", None)] * 2]
    assert outcomes(tmp_path, [ok, big], **image, too_long="drop") == [("kept", (5, 1)), ("too long", None)]
    kosmos = image | dict(template="kosmos1", template_options=dict(num_slots=2, keep_single_image=0.0))
    assert outcomes(tmp_path, [ok], **kosmos) == [("left out", None)]
    assert outcomes(tmp_path, [Document((Text("a"),)), ok])[1] == ("document damaged", None)   # an image in a text set


def test_a_bad_image_beyond_the_limit_does_no_harm(tmp_path):
    page = Document((Image(png(1)), Text("ok"), Image(b"broken"), Text("x")))
    settings = dict(images_per_row=2, max_images=1, image=ImageSpec(size=4), template="flamingo")
    assert outcomes(tmp_path, [page], **settings) == [("truncated", (5, 1))]


@pytest.mark.quick
def test_a_draw_decides_what_is_random(tmp_path):
    pages = [Document((Text("p"), Image(png(1)), Text("q")))] * 2
    encode = encoder(tmp_path, pages, images_per_row=1, image=ImageSpec(size=4), template="flamingo",
                     template_options=dict(p_next=0.5))
    draws = [Draw(0, epoch, index) for epoch in range(20) for index in range(2)]
    chosen = [int(encode(draw).encoded.image_index[0]) for draw in draws]
    assert chosen == [int(encode(draw).encoded.image_index[0]) for draw in draws]
    assert set(chosen[::2]) == set(chosen[1::2]) == {-1, 0} and chosen[::2] != chosen[1::2]


def test_a_special_token_that_is_missing_is_named_at_the_start(tmp_path):
    config = DataSetConfig((Source(tmp_path),), 1, 8, template="flamingo")
    with pytest.raises(ValueError, match="no special token '<EOC>'"):
        Encoder(config, [], byte_tokenizer(("<s>", "<image>")), 0)
