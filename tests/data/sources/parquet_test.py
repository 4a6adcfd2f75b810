import pickle
import threading

import numpy as np
import pytest

from mmjax.data.documents import DocumentError
from mmjax.data.sources import parquet as rows
from mmjax.data.sources.interface import BadShard
from mmjax.data.sources.parquet import ParquetTable

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def file(tmp_path):
    table = pa.table(dict(n=list(range(10)), text=[f"t{i}" for i in range(10)], other=[None] * 10))
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    return str(tmp_path / "a.parquet")


@pytest.mark.quick
def test_rows_by_number_with_the_columns_asked_for(file):
    table = ParquetTable(file, ("n",), ("text", "absent"))
    copy = pickle.loads(pickle.dumps(table))
    for k in (9, 0, 5, 3, 2):
        assert table.object(k) == copy.object(k) == dict(n=k, text=f"t{k}")
    assert len(table) == 10 and table.ends.tolist() == [3, 6, 9, 10]
    assert [table.column("text", g) for g in (1, 3)] == [["t3", "t4", "t5"], ["t9"]]


def test_groups_are_read_once_in_order_and_few_are_kept(file, monkeypatch):
    read, real = [], parquet.ParquetFile.read_row_group
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group",
                        lambda self, g, **options: read.append(g) or real(self, g, **options))
    monkeypatch.setattr(rows, "_KEPT_GROUPS", 2)
    table = ParquetTable(file, ("n",))
    assert [table.object(k)["n"] for k in range(10)] == list(range(10)) and read == [0, 1, 2, 3]
    assert table.object(8)["n"] == 8 and read == [0, 1, 2, 3]
    assert table.object(0)["n"] == 0 and read == [0, 1, 2, 3, 0]


def test_threads_read_the_same_rows(file):
    table, wrong = ParquetTable(file, ("n", "text")), []

    def read(seed):
        for k in np.random.default_rng(seed).integers(0, 10, 100).tolist():
            if table.object(k) != dict(n=k, text=f"t{k}"):
                wrong.append(k)
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_cannot_be_read_is_named(file, monkeypatch, tmp_path):
    with pytest.raises(DocumentError, match="a.parquet has no column 'caption'; it has n, text, other"):
        ParquetTable(file, ("n", "caption"))
    (tmp_path / "b.parquet").write_bytes(b"<html>")
    with pytest.raises(BadShard, match="b.parquet is not a complete parquet file"):
        ParquetTable(str(tmp_path / "b.parquet"), ("n",))
    monkeypatch.setattr(rows, "_MAX_GROUP_BYTES", 10)
    with pytest.raises(DocumentError, match="row group of .* bytes; the limit is 10: write it anew with smaller"):
        ParquetTable(file, ("n",))


def test_without_pyarrow_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match="needs pyarrow, .* pip install 'mmjax.data.'"):
        ParquetTable(file, ("n",))


def test_a_damaged_footer_names_the_file(file):
    with open(file, "r+b") as f:
        data = f.read()
        f.seek(0)
        f.write(data.replace(b"other", b"\xf4ther"))
    with pytest.raises(BadShard, match="a.parquet is not a complete parquet file"):
        ParquetTable(file, ("n",))
