import json
import os
import pickle

import numpy as np
import pytest

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources import open_source

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(file, rows, group=2, **options):
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=group, write_page_checksum=True, **options)


def page(i, image):
    return dict(images=[None, image, None], texts=[f"before {i} \u2603", None, f"after <image> {i}"],
                metadata=json.dumps([None, dict(src=f"http://x/{i}.jpg"), None]),
                general_metadata=json.dumps(dict(url=f"http://x/{i}")))


def document(i, data):
    return Document((Text(f"before {i} \u2603"), Image(data), Text(f"after <image> {i}")), f"http://x/{i}")


@pytest.mark.quick
def test_pages_with_bytes_in_order_and_at_random(tmp_path):
    data = [bytes([i]) * 50 for i in range(7)]
    write(tmp_path / "a.parquet", [page(i, data[i]) for i in range(5)])
    write(tmp_path / "b.parquet", [page(i, data[i]) for i in (5, 6)])
    source, made = open_source("obelics", tmp_path), [document(i, d) for i, d in enumerate(data)]
    assert list(source) == made
    copy = pickle.loads(pickle.dumps(source))
    for i in np.random.default_rng(0).permutation(7).tolist():
        assert source[i] == copy[i] == made[i]
    assert source.blocks().tolist() == [2, 4, 5, 7] and source.name(6).endswith("b.parquet record 1")
    assert source.fingerprint() == copy.fingerprint() == json.loads(json.dumps(source.fingerprint()))


def test_images_as_hugging_face_stores_them_and_as_names_of_files(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.jpg").write_bytes(b"beside")
    write(tmp_path / "a.parquet", [page(0, dict(bytes=b"inside", path="0.jpg")),
                                    page(1, dict(bytes=None, path="1.jpg"))])
    write(tmp_path / "b.parquet", [page(1, "1.jpg")])
    source = open_source("obelics", tmp_path, images=str(tmp_path / "pictures"))
    assert list(source) == [document(0, b"inside"), document(1, b"beside"), document(1, b"beside")]


@pytest.mark.parametrize("image, words", [
    ("http://x/1.jpg", "position 1: image 'http://x/1.jpg' is an address"), ("gone.jpg", "gone.jpg.*No such file"),
    ("../a.jpg", "without '..'"), ("", "neither bytes nor a name")])
def test_an_image_that_is_not_there_costs_the_page_or_the_image(tmp_path, image, words):
    write(tmp_path / "a.parquet", [page(0, image)])
    with pytest.raises(DocumentError, match=f"a.parquet record 0: .*{words}"):
        open_source("obelics", tmp_path)[0]
    whole = document(0, b"")
    assert open_source("obelics", tmp_path, missing="drop_image")[0].segments == (whole.segments[0], whole.segments[2])
    with pytest.raises(ValueError, match="missing='drop' is unknown; known: drop_document, drop_image"):
        open_source("obelics", tmp_path, missing="drop")


@pytest.mark.parametrize("change, words", [
    (dict(texts=["a", "b", "c"]), "position 1 has both"), (dict(texts=[None, None, "c"]), "position 0 has neither"),
    (dict(texts=["a"]), "3 images but 1 texts"), (dict(texts=None), "'texts' is None"),
    (dict(texts=[], images=[]), "has 0 segments")])
def test_columns_that_do_not_fit_each_other(tmp_path, change, words):
    write(tmp_path / "a.parquet", [page(0, b"x"), page(1, b"x") | change])
    source = open_source("obelics", tmp_path)
    assert source[0] == document(0, b"x")
    with pytest.raises(DocumentError, match=f"a.parquet record 1: .*{words}"):
        source[1]


def test_a_flipped_bit_costs_one_row_group(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "a.parquet"
    data = [rng.bytes(5000) for _ in range(6)]
    write(file, [page(i, data[i]) for i in range(6)], use_dictionary=False, compression="none")
    raw = bytearray(file.read_bytes())
    raw[raw.index(data[3][:100]) + 50] ^= 1
    file.write_bytes(raw)
    source = open_source("obelics", file)
    for i in (0, 1, 4, 5):
        assert source[i] == document(i, data[i])
    for i in (2, 3):
        with pytest.raises(DocumentError, match=f"a.parquet record {i}: row group 1 cannot be read"):
            source[i]


def test_cut_replaced_and_foreign_files(tmp_path):
    file = tmp_path / "a.parquet"
    write(file, [page(i, b"x" * 100) for i in range(4)])
    write(tmp_path / "b.parquet", [page(9, b"y")])
    (tmp_path / "manifest.json").write_text(json.dumps(dict(records={"a.parquet": 4})))
    whole, opened = file.read_bytes(), open_source("obelics", file)
    for size in (len(whole) - 1, len(whole) // 2, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(DocumentError, match="a.parquet is not a complete.* 4 documents expected, 0 doc.* found"):
            open_source("obelics", tmp_path)
        source = open_source("obelics", tmp_path, on_bad_shard="skip")
        assert list(source) == [document(9, b"y")] and source.dropped == {"shard damaged": 4}
    with pytest.raises(DocumentError, match="was changed after it was opened"):
        opened[0]
    write(file, [page(i, b"z" * 100) for i in range(4)])
    assert os.path.getsize(file) == len(whole) and open_source("obelics", file).fingerprint() != opened.fingerprint()
    parquet.write_table(pa.table(dict(pictures=[1])), file)
    with pytest.raises(DocumentError, match="a.parquet has no column 'images'; it has pictures"):
        open_source("obelics", file)
