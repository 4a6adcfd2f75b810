import json

import pytest

from mmjax.data.documents import Document, DocumentError, Text
from mmjax.data.sources.interface import Dropped, FileSource, count_of_manifest, find_files, sample_digest


class Letters(FileSource):
    """A document for each letter of a file."""

    suffixes = (".txt",)

    def open_shard(self, file):
        return _Letters(file)


class _Letters:
    def __init__(self, file):
        with open(file, encoding="utf-8") as f:
            self._letters = f.read()
        self.dropped = Dropped()
        for letter in self._letters:
            if letter == "-":
                self.dropped.add("dash", file)
        self._letters = self._letters.replace("-", "")

    def __len__(self):
        return len(self._letters)

    def read(self, k):
        if self._letters[k] == "!":
            raise OSError("the disk is gone")
        return Document((Text(self._letters[k]),))


def letters(source):
    return "".join(document.segments[0].text for document in source)


@pytest.mark.quick
def test_files_one_after_the_other(tmp_path):
    for name, text in (("b.txt", "cde"), ("a.txt", "-ab"), (".hidden.txt", "x"), ("c.md", "x")):
        (tmp_path / name).write_text(text)
    source = Letters(tmp_path)
    assert letters(source) == "abcde" and source.dropped == {"dash": 1} and len(source) == 5
    names = ["a.txt record 1", "b.txt record 0", "b.txt record 2"]
    assert [source.name(i).rpartition("/")[2] for i in (1, 2, 4)] == names
    assert [f[0:2] + f[3:] for f in source.fingerprint()] == [["a.txt", 3, 2], ["b.txt", 3, 3]]
    for i in (-1, 5):
        with pytest.raises(IndexError, match=f"document {i} of 5"):
            source[i]
    assert letters(Letters(tmp_path / "b.txt")) == "cde" and Letters.find(tmp_path / "c.md") == [str(tmp_path / "c.md")]


def test_an_error_of_the_disk_names_file_and_record(tmp_path):
    (tmp_path / "a.txt").write_text("ab!")
    with pytest.raises(DocumentError, match="a.txt record 2: the disk is gone"):
        Letters(tmp_path)[2]


def test_what_holds_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="data folder .* holds no file that ends in .txt or .md"):
        find_files(tmp_path, (".txt", ".md"))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DocumentError, match="a.txt holds no documents"):
        Letters(tmp_path)
    (tmp_path / "a.txt").write_text("--")
    with pytest.raises(DocumentError, match="holds no documents; left out: {'dash': 2}"):
        Letters(tmp_path)


def test_the_manifest_counts_what_was_left_out_too(tmp_path):
    (tmp_path / "a.txt").write_text("ab-")
    for count, good in ((3, True), (2, True), (4, False), (1, False)):
        (tmp_path / "manifest.json").write_text(json.dumps(dict(records={"a.txt": count})))
        assert count_of_manifest(str(tmp_path / "a.txt")) == count
        if good:
            assert letters(Letters(tmp_path)) == "ab"
        else:
            with pytest.raises(DocumentError, match=f"not the file that was written; {count} documents expected, 2"):
                Letters(tmp_path)
    (tmp_path / "manifest.json").write_text("[")
    assert count_of_manifest(str(tmp_path / "a.txt")) is None


@pytest.mark.parametrize("at", [0, 70_000, 150_000, 299_999])
def test_the_digest_sees_head_middle_and_tail(tmp_path, at):
    data = bytearray(300_000)
    (tmp_path / "a").write_bytes(data)
    before = sample_digest(str(tmp_path / "a"))
    data[at] ^= 1
    (tmp_path / "a").write_bytes(data)
    assert (sample_digest(str(tmp_path / "a")) != before) == (at != 70_000)      # which is read by nobody
