import os

import numpy as np
import pytest

from mmjax.data.documents import DocumentError
from mmjax.data.sources import index


class Counted:
    """Indexes a file by its length, and counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self, file):
        self.count += 1
        return dict(size=np.array(os.path.getsize(file)))


def test_an_index_is_made_once_and_anew_for_another_file(tmp_path):
    file, build = tmp_path / "a.tar", Counted()
    file.write_bytes(b"x" * 100)
    for _ in range(3):
        assert index.cached_index(str(file), "size", build)["size"] == 100
    assert build.count == 1 and (tmp_path / ".a.tar.size.index.npz").exists()
    stat = file.stat()
    file.write_bytes(b"y" * 100)                    # same name, size and time
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    index.cached_index(str(file), "size", build)
    assert build.count == 2
    index.cached_index(str(file), "other", build)
    assert build.count == 3
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("damage", ["cut", "flip", "pickle"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    file, cache, build = tmp_path / "a.tar", tmp_path / ".a.tar.size.index.npz", Counted()
    file.write_bytes(b"x" * 100)
    index.cached_index(str(file), "size", build)
    data = bytearray(cache.read_bytes())
    if damage == "cut":
        cache.write_bytes(data[:-30])
    elif damage == "flip":
        data[data.index(b"size.npy") + 140] ^= 1
        cache.write_bytes(data)
    else:
        with np.load(cache) as stored:
            np.savez(cache, stamp=stored["stamp"], size=np.array([{}], object))
    assert index.cached_index(str(file), "size", build)["size"] == 100 and build.count == 2


def test_the_cache_folder_serves_where_the_data_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index.Path, "with_name", lambda self, name: self / name)    # a file is no folder to write into
    file, build = tmp_path / "a.tar", Counted()
    file.write_bytes(b"x")
    for _ in range(2):
        index.cached_index(str(file), "size", build)
    assert build.count == 1 and len(list((tmp_path / "cache/mmjax/index").iterdir())) == 1


def test_a_file_changed_while_it_is_read_is_noticed(tmp_path):
    (tmp_path / "a").write_bytes(b"abcdef")
    opened = index.ByteFile(str(tmp_path / "a"))
    assert opened.read(1, 3) == b"bc"
    with pytest.raises(DocumentError, match="bytes 4 to 9 end at 6"):
        opened.read(4, 9)
    (tmp_path / "a").write_bytes(b"abcdefg")
    with pytest.raises(DocumentError, match="was changed after it was opened"):
        opened.read(1, 3)
