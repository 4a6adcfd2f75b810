import msgpack
import numpy as np
import pytest

from mmjax.data import documents as docs
from mmjax.data.documents import Document, DocumentError, Image, Text, Video

PAGE = Document((Text("see <image>"), Image(b"\xff\xd8jpeg"), Text("prompt", 0.0), Video((b"a", b"b"))), "page-1")


@pytest.mark.quick
def test_bytes_round_trip():
    assert docs.from_bytes(docs.to_bytes(PAGE)) == PAGE


@pytest.mark.parametrize("value, message", [
    ([2, "k", [[0, "t", 1.0]]], "version 2"),
    ([1, "k", []], "0 segments"),
    ([1, "k", [[0, "t", 1]]], "segment 0 is not"),
    ([1, "k", [[0, "t", float("nan")]]], "finite"),
    ([1, "k", [[0, "t", -1.0]]], "at least 0"),
    ([1, "k", [[0, "t", 1.0], [3, b""]]], "segment 1 is not"),
    ([1, "k", [[2, []]]], "0 frames"),
    ([1, "k", [[2, ["x"]]]], "must all be bytes"),
    ([1, 7, []], "not .version"),
    ([1, "k", [[1, b""]] * (docs.MAX_SEGMENTS + 1)], "not a document"),
    ({"a": 1}, "not a document"),
])
def test_from_bytes_refuses(value, message):
    with pytest.raises(DocumentError, match=message):
        docs.from_bytes(msgpack.packb(value))


def test_from_bytes_never_raises_anything_else():
    rng, good = np.random.default_rng(0), docs.to_bytes(PAGE)
    for _ in range(2000):
        bad = bytearray(good[: rng.integers(1, len(good) + 1)])
        bad[rng.integers(len(bad))] = rng.integers(256)
        try:
            docs.from_bytes(bytes(bad))
        except DocumentError:
            continue


def test_bad_documents_are_refused_when_made(monkeypatch):
    with pytest.raises(DocumentError, match="lone surrogate .* at character 2"):
        Text("ab\udc80")
    with pytest.raises(DocumentError, match="segment 1 of document 'k' is a str"):
        Document((Text("a"), "b"), "k")
    with pytest.raises(DocumentError, match="Image.data is a str"):
        Image("x")
    monkeypatch.setattr(docs, "MAX_DOCUMENT_BYTES", 10)
    with pytest.raises(DocumentError, match="the limit is 10"):
        docs.to_bytes(PAGE)
    with pytest.raises(DocumentError, match="the limit is 10"):
        docs.from_bytes(b"x" * 11)


def test_write_and_read_a_folder(tmp_path):
    made = [Document((Text(f"text {i}"),), f"k{i}") for i in range(5)]
    assert docs.write_documents(tmp_path / "d" / "b.array_record", made[2:]) == 3
    assert docs.write_documents(tmp_path / "d" / "a.array_record", iter(made[:2])) == 2
    source = docs.DocumentSource(tmp_path / "d")
    assert list(source) == made and len(source) == 5
    assert source.name(1).endswith("a.array_record record 1")
    assert source.name(2).endswith("b.array_record record 0")
    with pytest.raises(IndexError):
        source[5]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.array_record"
    docs.write_documents(file, [PAGE])

    def fails():
        yield PAGE
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        docs.write_documents(file, fails())
    with pytest.raises(DocumentError, match="no documents"):
        docs.write_documents(file, [])
    with pytest.raises(ValueError, match="must end in"):
        docs.write_documents(tmp_path / "a.records", [PAGE])
    assert [p.name for p in tmp_path.iterdir()] == ["a.array_record"]
    assert list(docs.DocumentSource(file)) == [PAGE]


def test_missing_empty_and_truncated_data_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nope does not exist"):
        docs.DocumentSource(tmp_path / "nope")
    with pytest.raises(FileNotFoundError, match="holds no .*array_record"):
        docs.DocumentSource(tmp_path)
    docs.write_documents(tmp_path / "a.array_record", [PAGE])
    data = (tmp_path / "a.array_record").read_bytes()
    for size in (0, 1000, len(data) // 2, len(data) - 10):
        (tmp_path / "b.array_record").write_bytes(data[:size])
        with pytest.raises(DocumentError, match="b.array_record is not a complete ArrayRecord file"):
            docs.DocumentSource(tmp_path)


def test_a_flipped_bit_costs_one_record_and_names_it(tmp_path):
    file = tmp_path / "a.array_record"
    rng = np.random.default_rng(0)
    made = [Document((Image(rng.bytes(40_000)),), f"k{i}") for i in range(4)]
    docs.write_documents(file, made)
    data = bytearray(file.read_bytes())
    data[data.index(made[2].segments[0].data[30_000:30_050])] ^= 1
    file.write_bytes(data)
    source = docs.DocumentSource(file)
    for _ in range(2):
        for i in (0, 1, 3):
            assert source[i] == made[i]
        with pytest.raises(DocumentError, match="a.array_record record 2"):
            source[2]
