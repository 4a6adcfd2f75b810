import json
import pickle

import pytest

from mmjax.data.documents import Document, DocumentError, Text
from mmjax.data.sources import open_source

TEXTS = ["plain", "<image> <|endofchunk|> </s>", "nul \x00, \ufeffmark, \u200f\u200d \u2603", "", "w" * 100_000]


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.mark.quick
def test_lines_of_json_keep_every_character(tmp_path):
    lines(tmp_path / "a.jsonl", [dict(id=f"k{i}", text=text) for i, text in enumerate(TEXTS)])
    lines(tmp_path / "b.ndjson", [dict(text="last", meta=[1])])
    source = open_source("text", tmp_path)
    made = [Document((Text(t),), f"k{i}") for i, t in enumerate(TEXTS)] + [Document((Text("last"),), "b.ndjson:0")]
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == made
    assert source.blocks() is None and source[3] == made[3]


def test_rows_of_parquet_among_lines(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines(tmp_path / "a.jsonl", [dict(content="a", name=7)] * 3)
    table = pa.table(dict(content=["b", None, "c"], name=[1, 2, 3]))
    parquet.write_table(table, tmp_path / "b.parquet", row_group_size=2)
    source = open_source("text", tmp_path, field="content", key="name")
    assert [source[i] for i in (5, 0, 3)] == [Document((Text(t),), k) for t, k in (("c", "3"), ("a", "7"), ("b", "1"))]
    assert source.blocks().tolist() == [3, 5, 6]
    with pytest.raises(DocumentError, match="b.parquet record 1: field 'content' is None; it must be of type str"):
        source[4]


@pytest.mark.parametrize("line, words", [
    (b'{"text": "\\ud800"}', "lone surrogate"), (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"words": "a"}', "no field 'text'"),
    (b'{"text": 3}', "must be of type str"), (b'{"text": "a', "not JSON")])
def test_a_bad_line_names_file_and_record(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    source = open_source("text", tmp_path)
    assert [source[i].segments[0].text for i in (0, 2)] == ["a", "b"]
    with pytest.raises(DocumentError, match=f"a.jsonl record 1: .*{words}"):
        source[1]


def test_a_cut_file_and_a_misspelt_option(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b')
    with pytest.raises(DocumentError, match="a.jsonl ends inside record 1.*1 documents found"):
        open_source("text", tmp_path)
    with pytest.raises(ValueError, match=r"no option 'feild' \(did you mean 'field'\?\)"):
        open_source("text", tmp_path, feild="content")
