import time

import numpy as np
import pytest

from mmjax.data import images
from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.data.image_spec import ImageError, ImageSpec
from mmjax.data.inspect import bench


@pytest.fixture
def config(tmp_path):
    write_documents(tmp_path / "a.array_record", [Document((Image(b"i"), Text(f"text {k}"))) for k in range(50)])
    data = DataSetConfig((Source(str(tmp_path)),), 2, 32, images_per_row=2, image=ImageSpec(8), template="flamingo")
    return LoaderConfig(dict(pairs=data))


def spend(seconds):
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


def decode(visuals, spec, frames):
    spend(0.01 * len(visuals))
    return np.zeros((len(visuals), frames, 8, 8, 3), np.uint8)


def test_costs_are_put_where_they_arise(config, monkeypatch):
    monkeypatch.setattr(images, "check_visuals", lambda visuals, spec, frames: spend(0.002 * len(visuals)))
    monkeypatch.setattr(images, "decode_visuals", decode)
    found = bench.costs(config, rows=5)["pairs"]
    assert found.rows == 5 and 0.1 <= found.decode < 0.12 and 0.01 < found.plan < 0.08 and found.lay < 0.02
    np.testing.assert_allclose(found.not_decoding, 1 - found.decode / (found.plan + found.decode + found.lay))
    assert "not decoding: " in found.line()


def test_an_image_that_is_damaged_does_not_stop_the_clock(config, monkeypatch):
    def refuse(*_):
        raise ImageError("image truncated or damaged", "x")
    monkeypatch.setattr(images, "check_visuals", lambda *_: None)
    monkeypatch.setattr(images, "decode_visuals", refuse)
    assert bench.costs(config, rows=2)["pairs"].rows == 2


@pytest.mark.quick
def test_throughput_counts_what_came(config, monkeypatch):
    from mmjax.data import decode as decoding
    monkeypatch.setattr(images, "check_visuals", lambda *_: None)
    monkeypatch.setattr(decoding, "decode_visuals", decode)
    speed = bench.throughput(config, 0.1)
    assert speed.seconds >= 0.1 and speed.rows == 2 * speed.batches and speed.images == 2 * speed.rows
    assert speed.images / speed.seconds <= 2.2 * 100 and "images/s" in speed.line()
