import msgpack
import numpy as np
import pytest

from mmjax.data import documents as docs
from mmjax.data.documents import Document, DocumentError, Image, Text, Video
from mmjax.data.sources.array_record import ArrayRecordSource

PAGE = Document((Text("see <image>"), Image(b"\xff\xd8jpeg"), Text("prompt", 0.0), Video((b"a", b"b"))), "page-1")


@pytest.mark.quick
def test_bytes_round_trip():
    assert docs.from_bytes(docs.to_bytes(PAGE)) == PAGE


def test_roles_round_trip_and_leave_older_bytes_as_they_were():
    chat = Document((Image(b"i", "user"), Text("what?", 0.0, "user"), Text("a cat", role="assistant"),
                     Video((b"a",), "assistant"), Text("rest")), "c")
    assert docs.from_bytes(docs.to_bytes(chat)) == chat
    plain = [1, "page-1", [[0, "see <image>", 1.0], [1, b"\xff\xd8jpeg"], [0, "prompt", 0.0], [2, [b"a", b"b"]]]]
    assert docs.to_bytes(PAGE) == msgpack.packb(plain)


@pytest.mark.parametrize("value, message", [
    ([2, "k", [[0, "t", 1.0]]], "version 2"),
    ([1, "k", []], "0 segments"),
    ([1, "k", [[0, "t", 1]]], "segment 0 is not"),
    ([1, "k", [[0, "t", float("nan")]]], "finite"),
    ([1, "k", [[0, "t", -1.0]]], "at least 0"),
    ([1, "k", [[0, "t", 1.0], [3, b""]]], "segment 1 is not"),
    ([1, "k", [[2, []]]], "0 frames"),
    ([1, "k", [[2, ["x"]]]], "must all be bytes"),
    ([1, "k", [[0, "t", 1.0, "robot"]]], "role='robot' must be one of system, user, assistant"),
    ([1, "k", [[1, b"", 5]]], "role=5 must be"),
    ([1, "k", [[1, b"", "user", "user"]]], "segment 0 is not"),
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
    assert list(ArrayRecordSource(file)) == [PAGE]
