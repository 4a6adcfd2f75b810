import json
import os

import numpy as np
import pytest

from mmjax.data.documents import DocumentError
from mmjax.data.sources import index, json_scan, records
from mmjax.data.sources.interface import BadShard


def odd_objects(rng, count):
    letters = list('"\\{}[],: \n\t\u2603\U0001f600ab/\x00')
    for _ in range(count):
        text = "".join(rng.choice(letters, rng.integers(0, 30)))
        yield {text: [text, {"a": [1, {}, []]}], "b\\": text, "c": None}


@pytest.mark.parametrize("chunk", [1, 7, 4 << 20])
@pytest.mark.parametrize("field", ["", "rows"])
def test_elements_of_a_list_are_found_whatever_they_hold(tmp_path, monkeypatch, chunk, field):
    monkeypatch.setattr(json_scan, "_CHUNK", chunk)
    made = list(odd_objects(np.random.default_rng(0), 40))
    for style in (dict(indent=2), dict(ensure_ascii=False, separators=(",", ":"))):
        around = {"info": {"rows": [1, 2]}, "x": [[1], "rows"], "rows": made, "z": {"a": 1, "b": 2}}
        text = json.dumps(around if field else made, **style)
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        found = records.open_json(str(tmp_path / "a.json"), field)
        assert [found.object(k) for k in range(len(found))] == made


@pytest.mark.parametrize("text, count", [("[]", 0), ("[ \n ]", 0), ("[{}]", 1), ('\ufeff [{"a": 1} , {}]\n', 2)])
def test_short_lists(tmp_path, text, count):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert len(records.open_json(str(tmp_path / "a.json"))) == count


@pytest.mark.parametrize("text, message", [
    ("", "begins with b''; it must be JSON, a list"),
    ('{"a": []}', "begins with b'{'"),
    ('[{"a": 1}, {"b": "x', "ends inside its JSON, at byte 19"),
    ("<html>", "begins with b'<'"),
])
def test_what_is_no_list_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DocumentError, match=message) as caught:
        records.open_json(str(tmp_path / "a.json"))
    assert "a.json" in str(caught.value) and getattr(caught.value, "found", 1) == 1


def test_a_missing_list_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [], "annotation": [1]}')
    with pytest.raises(DocumentError, match="a.json has no list 'annotations'"):
        records.open_json(str(tmp_path / "a.json"), "annotations")


@pytest.mark.parametrize("chunk", [1, 5, 8 << 20])
def test_lines_are_those_that_are_not_empty(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    file = tmp_path / "a.txt"
    for data, lines in ((b"", []), (b"\n\n", []), (b"a\r\n\r\n b\n\nc", ["a", " b", "c"]),
                        (b"\xef\xbb\xbfx\n\xef\xbb\xbfy\r\n", ["x", "\ufeffy"]), (b"a\rb\n", ["a\rb"]),
                        ("\u2028\x0b\x00\n".encode(), ["\u2028\x0b\x00"])):
        file.write_bytes(data)
        found = records.open_lines(str(file))
        assert [found.text(k) for k in range(len(found))] == lines


def test_a_cut_file_of_json_lines_says_how_many_are_whole(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}')                # only the last line end is missing: that is whole
    assert len(records.open_json(str(file))) == 3
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(BadShard, match="a.jsonl ends inside record 2: not JSON") as caught:
        records.open_json(str(file))
    assert caught.value.found == 2


@pytest.mark.parametrize("line, message", [
    (b"{", "not JSON"), (b"[" * 100_000, "not JSON"), (b"[1]", "a JSON list, .1.; it must be an object"),
    (b'{"a": "\xff"}', "not UTF-8: byte 7 of 10 is 0xff"), (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
])
def test_bad_records_are_named_and_spoil_no_other(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    found = records.open_json(str(tmp_path / "a.jsonl"))
    assert found.object(0) == {"a": 1} and found.object(2) == {"a": 2}
    with pytest.raises(DocumentError, match=message):
        found.object(1)


def test_fields_are_taken_with_their_type():
    assert records.take({"a": 1}, "a", int, str) == 1
    with pytest.raises(DocumentError, match="no field 'b'; it has 'a'"):
        records.take({"a": 1}, "b", int)
    with pytest.raises(DocumentError, match="field 'a' is True; it must be of type int or str"):
        records.take({"a": True}, "a", int, str)


def test_too_large_records_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": "x" * 200}) + '\n{"a": 1}\n')
    found = records.open_json(str(tmp_path / "a.jsonl"))
    assert found.object(1) == {"a": 1}
    with pytest.raises(DocumentError, match="209 bytes; the limit is 100"):
        found.object(0)
