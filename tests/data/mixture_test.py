import io

import numpy as np
import pytest
from PIL import Image as pil

from mmjax.data import mixture
from mmjax.data.config import DataSetConfig, Source
from mmjax.data.documents import Document, DocumentError, Image, Text, write_documents
from mmjax.data.images import ImageSpec
from mmjax.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def png(shade, side=8):
    out = io.BytesIO()
    pil.fromarray(np.full((side, side, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def two_sources(tmp_path):
    for name, count in (("a", 12), ("b", 8)):
        write_documents(tmp_path / f"{name}.array_record", (Document((Text(f"{name}{i}"),)) for i in range(count)))
    return tmp_path / "a.array_record", tmp_path / "b.array_record"


def stream(config, count, seed=0, **kwargs):
    """The first `count` elements as (source, record)."""
    it = iter(mixture.document_stream(config, TOKENIZER, seed, **kwargs))
    return [tuple(next(it)["info"][0, :2].tolist()) for _ in range(count)]


@pytest.mark.quick
def test_weights_hold_in_every_stretch_and_sources_reshuffle_each_epoch(two_sources):
    a, b = two_sources
    config = DataSetConfig((Source(a, 3.0), Source(b, 1.0)), 1, 16)
    drawn = stream(config, 96)
    for start in range(0, 96, 8):
        assert sum(s == 0 for s, _ in drawn[start:start + 8]) == 6
    records = [r for s, r in drawn if s == 0]
    epochs = [records[i:i + 12] for i in range(0, 72, 12)]
    assert all(sorted(e) == list(range(12)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 6
    assert drawn == stream(config, 96, threads=3)
    assert drawn != stream(config, 96, seed=1)


@pytest.mark.quick
def test_processes_share_every_epoch_and_mix_alike(two_sources):
    config = DataSetConfig(tuple(Source(p) for p in two_sources), 2, 16)
    shares = [stream(config, 24, process_index=p, process_count=2) for p in range(2)]
    for share in shares:                                # dealing out a mixed stream would give each one source only
        assert [s for s, _ in share] in ([0, 1] * 12, [1, 0] * 12)
    for source, size in ((0, 12), (1, 8)):
        first = [[r for s, r in share if s == source][:size // 2] for share in shares]
        assert sorted(first[0] + first[1]) == list(range(size))


def test_processes_draw_their_own_augmentations(tmp_path):
    write_documents(tmp_path / "a.array_record", [Document((Text("p"), Image(png(1)), Text("q")))] * 4)
    config = DataSetConfig((Source(tmp_path),), 2, 32, images_per_row=1, image=ImageSpec(size=4), template="flamingo",
                           template_options=dict(p_next=0.5))
    draws = []
    for p in range(2):
        it = iter(mixture.document_stream(config, TOKENIZER, 0, process_index=p, process_count=2))
        draws.append([int(next(it)["image_index"][0]) for _ in range(40)])
    assert set(draws[0]) == {-1, 0} and draws[0] != draws[1]


def outcomes(tmp_path, documents, **settings):
    write_documents(tmp_path / "x.array_record", documents)
    config = DataSetConfig((Source(tmp_path),), 1, 32, **settings)
    it = iter(mixture.document_stream(config, TOKENIZER, 0))
    found = {}
    for _ in range(len(documents)):
        f = next(it)
        found[f["info"][0, 1].item()] = (mixture.OUTCOMES[f["info"][0, 2]], len(f["tokens"]), f["images"].shape)
    return [found[i] for i in range(len(documents))]


def test_every_outcome(tmp_path):
    ok, image = Document((Image(png(1)), Text("ok"))), dict(images_per_row=2, image=ImageSpec(size=4),
                                                            template="flamingo")
    big = Document((Image(png(1)), Text("x" * 99)))
    cut = Document((Image(png(1, 64)[:60]), Text("cut")))
    web = Document((Text("a"), Image(b"<html>"), Text("b")))
    none, one = (0, 1, 4, 4, 3), (1, 1, 4, 4, 3)
    assert outcomes(tmp_path, [ok, big, cut, web], **image) == [
        ("kept", 5, one), ("truncated", 32, one), ("image truncated or damaged", 0, none),
        ("not a JPEG, PNG, WebP or GIF image", 0, none)]
    assert outcomes(tmp_path, [ok, big], **image, too_long="drop") == [("kept", 5, one), ("too long", 0, none)]
    kosmos = image | dict(template="kosmos1", template_options=dict(num_slots=2, keep_single_image=0.0))
    assert outcomes(tmp_path, [ok], **kosmos) == [("left out", 0, none)]
    assert outcomes(tmp_path, [Document((Text("a"),)), ok])[1][0] == "document damaged"      # an image in a text set


def test_a_cut_image_beyond_the_limit_does_no_harm(tmp_path):
    page = Document((Image(png(1)), Text("ok"), Image(b"broken"), Text("x")))
    settings = dict(images_per_row=2, max_images=1, image=ImageSpec(size=4), template="flamingo")
    assert outcomes(tmp_path, [page], **settings) == [("truncated", 5, (1, 1, 4, 4, 3))]


def test_errors_come_before_the_first_element(tmp_path, two_sources):
    with pytest.raises(FileNotFoundError, match="nope does not exist"):
        mixture.document_stream(DataSetConfig((Source(tmp_path / "nope"),), 1, 8), TOKENIZER, 0)
    with pytest.raises(ValueError, match="no special token '<EOC>'"):
        mixture.document_stream(DataSetConfig((Source(two_sources[0]),), 1, 8, template="flamingo"),
                                byte_tokenizer(("<s>", "<image>")), 0)
    data = two_sources[1].read_bytes()
    two_sources[1].write_bytes(data[:len(data) // 2])
    with pytest.raises(DocumentError, match="b.array_record is not a complete"):
        mixture.document_stream(DataSetConfig((Source(tmp_path),), 1, 8), TOKENIZER, 0)


def test_seeds_differ_by_purpose():
    assert len({mixture.derive_seed(s, p) for s in range(10) for p in "abcdef"}) == 60


