import json
import os
import pickle

import numpy as np
import pytest

from mmjax.data.documents import Document, DocumentError, Image, Text, write_documents
from mmjax.data.sources.array_record import ArrayRecordSource

PAGE = Document((Text("see"), Image(b"\xff\xd8jpeg"), Text("prompt", 0.0)), "page-1")


def test_write_and_read_a_folder(tmp_path):
    made = [Document((Text(f"text {i}"),), f"k{i}") for i in range(5)]
    assert write_documents(tmp_path / "d" / "b.array_record", made[2:]) == 3
    assert write_documents(tmp_path / "d" / "a.array_record", iter(made[:2])) == 2
    source = ArrayRecordSource(tmp_path / "d")
    assert list(source) == made and len(source) == 5
    assert source.name(1).endswith("a.array_record record 1")
    assert source.name(2).endswith("b.array_record record 0")
    with pytest.raises(IndexError):
        source[5]


def test_missing_empty_and_truncated_data_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nope does not exist"):
        ArrayRecordSource(tmp_path / "nope")
    with pytest.raises(FileNotFoundError, match="holds no .*array_record"):
        ArrayRecordSource(tmp_path)
    write_documents(tmp_path / "a.array_record", [PAGE])
    data = (tmp_path / "a.array_record").read_bytes()
    for size in (0, 1000, len(data) // 2, len(data) - 10):
        (tmp_path / "b.array_record").write_bytes(data[:size])
        with pytest.raises(DocumentError, match="b.array_record is not a complete ArrayRecord file"):
            ArrayRecordSource(tmp_path)


def test_a_flipped_bit_costs_one_record_and_names_it(tmp_path):
    file = tmp_path / "a.array_record"
    rng = np.random.default_rng(0)
    made = [Document((Image(rng.bytes(40_000)),), f"k{i}") for i in range(4)]
    write_documents(file, made)
    data = bytearray(file.read_bytes())
    data[data.index(made[2].segments[0].data[30_000:30_050])] ^= 1
    file.write_bytes(data)
    source = ArrayRecordSource(file)
    for _ in range(2):
        for i in (0, 1, 3):
            assert source[i] == made[i]
        with pytest.raises(DocumentError, match="a.array_record record 2"):
            source[2]


def test_the_counts_of_the_manifest_are_named_and_a_bad_shard_can_be_skipped(tmp_path):
    for name, count in (("a", 4), ("b", 3)):
        write_documents(tmp_path / f"{name}.array_record", [PAGE] * count)
    (tmp_path / "manifest.json").write_text(json.dumps({"records": {"a.array_record": 4, "b.array_record": 3}}))
    assert len(ArrayRecordSource(tmp_path)) == 7
    os.truncate(tmp_path / "a.array_record", os.path.getsize(tmp_path / "a.array_record") - 1)
    with pytest.raises(DocumentError, match="a.array_record is not .* 4 documents expected, 0 documents found"):
        ArrayRecordSource(tmp_path)
    source = ArrayRecordSource(tmp_path, on_bad_shard="skip")
    assert len(source) == 3 and source.dropped == {"shard damaged": 4}
    write_documents(tmp_path / "a.array_record", [PAGE] * 5)
    with pytest.raises(DocumentError, match="not the file that was written; 4 documents expected, 5 documents found"):
        ArrayRecordSource(tmp_path)
    with pytest.raises(ValueError, match="on_bad_shard='ignore' is unknown; known: raise, skip"):
        ArrayRecordSource(tmp_path, on_bad_shard="ignore")


def test_another_file_under_the_same_name_has_another_fingerprint(tmp_path):
    file = tmp_path / "a.array_record"
    def write(letters):
        write_documents(file, (Document((Text(c * 50),), c) for c in letters))
        return ArrayRecordSource(tmp_path).fingerprint()
    first = write("abcdef")
    assert first == write("abcdef") == json.loads(json.dumps(first)) and first[0][0] == "a.array_record"
    other = write("abcdeg")
    assert other[0][1] == first[0][1] and other != first          # the size alone does not tell


def test_a_source_can_be_pickled(tmp_path):
    write_documents(tmp_path / "a.array_record", [PAGE] * 3)
    source = ArrayRecordSource(tmp_path)
    assert source[1] == PAGE
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == [PAGE] * 3 and copy.fingerprint() == source.fingerprint() and copy.blocks() is None
