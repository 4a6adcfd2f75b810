import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from mmjax.checkpoint.convert.weights import INDEX, WEIGHTS, WeightFolder, WeightsError, write_folder

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, ml_dtypes.bfloat16),
           "c": np.arange(5, dtype=np.int64)}


def write(folder, **options):
    sizes = {name: x.nbytes for name, x in TENSORS.items()}
    write_folder(folder, sizes, TENSORS.__getitem__, {"config.json": b"{}"}, **options)


def assert_holds_tensors(folder):
    got = dict(WeightFolder(folder).tensors())
    assert list(got) == list(TENSORS)
    for name, want in TENSORS.items():
        assert got[name].dtype == want.dtype
        np.testing.assert_array_equal(got[name], want)


@pytest.mark.quick
def test_one_file_and_shards_hold_the_same(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "many", max_shard_bytes=32)
    assert sorted(os.listdir(tmp_path / "one")) == ["config.json", WEIGHTS]
    assert sorted(os.listdir(tmp_path / "many")) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX]
    assert json.loads((tmp_path / "many" / INDEX).read_text())["weight_map"]["c"] == "model-00002-of-00002.safetensors"
    assert_holds_tensors(tmp_path / "one")
    assert_holds_tensors(tmp_path / "many")
    assert sorted(os.listdir(tmp_path)) == ["many", "one"]          # no draft left behind


@pytest.mark.quick
def test_a_folder_that_holds_anything_is_not_overwritten(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(WeightsError, match="exists and is not an empty folder"):
        write(tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.quick
@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
@pytest.mark.parametrize("protocol", ["pickle", "torch"])
def test_pickles_are_refused_by_content_and_by_name(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    if protocol == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    with pytest.raises(WeightsError, match="run any program"):
        WeightFolder(tmp_path)
    assert os.listdir(tmp_path) == [name]


def header(entries, data=b"\0" * 8, length=None):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = dict(dtype="F32", shape=[2], data_offsets=[0, 8])
MALFORMED = {
    "truncated": header({"a": F32})[:-3],
    "trailing": header({"a": F32}) + b"more",
    "a header of 2^40 bytes": header({"a": F32}, length=2**40),
    "overlap": header({"a": F32, "b": dict(F32, data_offsets=[4, 12])}, b"\0" * 12),
    "hole": header({"a": F32, "b": dict(F32, data_offsets=[12, 20])}, b"\0" * 20),
    "overflow": header({"a": dict(F32, shape=[2**40, 2**40])}),
    "same name twice": header(b'{"a":%b,"a":%b}' % ((json.dumps(F32).encode(),) * 2), b"\0" * 16),
    "empty": b"",
}


@pytest.mark.quick
@pytest.mark.parametrize("fault", MALFORMED)
def test_damaged_files_are_named(tmp_path, fault):
    (tmp_path / WEIGHTS).write_bytes(MALFORMED[fault])
    with pytest.raises(WeightsError, match=f"{WEIGHTS} is not a whole safetensors file"):
        WeightFolder(tmp_path)


@pytest.mark.quick
def test_index_and_shards_must_agree(tmp_path):
    write(tmp_path / "w", max_shard_bytes=32)
    folder = tmp_path / "w"
    index = json.loads((folder / INDEX).read_text())
    for changed, said in (({"d": "model-00001-of-00002.safetensors"}, "lacks the tensor 'd'"),
                          ({"d": "model-00003-of-00002.safetensors"}, "names the shard model-00003-of-00002"),
                          ({"d": "../secret.safetensors"}, "shards lie in the folder itself")):
        (folder / INDEX).write_text(json.dumps(dict(index, weight_map=index["weight_map"] | changed)))
        with pytest.raises(WeightsError, match=said):
            WeightFolder(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        WeightFolder(folder)


@pytest.mark.quick
def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(WeightsError, match="is not a folder"):
        WeightFolder(tmp_path / "nothing")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(WeightsError, match=f"has neither {WEIGHTS} nor .*; it holds README.md"):
        WeightFolder(tmp_path)


@pytest.mark.quick
def test_other_libraries_read_what_is_written(tmp_path):
    write(tmp_path / "w")
    got = load_file(tmp_path / "w" / WEIGHTS)
    assert {name: x.dtype for name, x in got.items()} == {name: x.dtype for name, x in TENSORS.items()}
