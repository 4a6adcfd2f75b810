import numpy as np
import pytest

from mmjax.data.documents import Image
from mmjax.data.emitter import Emitter
from mmjax.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
NAMES = dict(bos="<s>", none="", image="<image>")


def ids(text):
    return list(text.encode())


@pytest.mark.quick
def test_columns_are_filled_by_runs():
    out = Emitter(TOKENIZER, NAMES)
    out.layout("{bos}a", 0.0)
    out.text("bc", 0.0)
    out.layout("{none}d", 0.5)
    out.open_visual(Image(b"i"))
    out.layout("<{image}", 0.25)
    out.slots("{image}", 2, 4)
    out.close_visual()
    out.text("e", 2.0)
    tokens, weights, image_index, slot_index, spans = out.finish()
    mark, bos = TOKENIZER.id("<image>"), TOKENIZER.id("<s>")
    assert tokens.tolist() == [bos, *ids("abcd<"), mark, mark, mark, *ids("e")]
    assert weights.tolist() == [0, 0, 0, 0, 0.5, 0.25, 0.25, 0, 0, 2]
    assert image_index.tolist() == [-1] * 7 + [0, 0, -1] and slot_index.tolist() == [-1] * 7 + [4, 5, -1]
    assert spans.tolist() == [[6, 9]]                   # text before the first special token can be cut off


def test_nothing_gives_empty_columns():
    tokens, weights, image_index, slot_index, spans = Emitter(TOKENIZER, NAMES).finish()
    assert [len(x) for x in (tokens, weights, image_index, slot_index)] == [0] * 4 and spans.shape == (0, 2)
    assert [x.dtype for x in (tokens, weights, spans)] == [np.int32, np.float32, np.int32]


def test_text_spells_no_layout():
    out = Emitter(TOKENIZER, NAMES)
    out.text("{bos}", 1.0)
    assert out.finish()[0].tolist() == ids("{bos}")
