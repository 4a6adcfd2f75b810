import zipfile

import pytest

from mmjax.data.documents import DocumentError
from mmjax.data.sources.interface import BadShard
from mmjax.data.sources.unpack import unpack_zip


def write(file, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, text in members.items():
            archive.writestr(f"{name}.jsonl", text)
    return str(file)


@pytest.mark.quick
def test_a_file_is_unpacked_once_and_anew_for_another(tmp_path):
    file = write(tmp_path / "a.jsonl.zip", docs="text\n" * 1000)
    first = unpack_zip(file, ".jsonl")
    with open(first, encoding="utf-8") as f:
        assert f.read() == "text\n" * 1000
    with open(first, "w", encoding="utf-8") as f:
        f.write("mark")
    assert unpack_zip(file, ".jsonl") == first
    with open(unpack_zip(write(file, docs="other"), ".jsonl"), encoding="utf-8") as f:
        assert f.read() == "other"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damaged_zips_are_named(tmp_path, method):
    file = write(tmp_path / "a.zip", method, docs="".join(f"{i * i} " for i in range(3000)))
    whole = (tmp_path / "a.zip").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    start = whole.index(b"docs.jsonl") + len("docs.jsonl")
    begun_badly = whole[:start] + b"\xff" * 10 + whole[start + 10:]   # zlib, lzma and bz2 say so in ways of their own
    for data in (whole[:-1], whole[:len(whole) // 2], b"", flipped, begun_badly):
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(DocumentError, match="a.zip is not a complete zip file"):
            unpack_zip(file, ".jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_bombs_and_ambiguous_zips_are_refused(tmp_path):
    with pytest.raises(BadShard, match="would unpack .* the limit is 200 times as many"):
        unpack_zip(write(tmp_path / "bomb.zip", docs="0" * 30_000_000), ".jsonl")
    with pytest.raises(BadShard, match="has 2 members that end in .jsonl; it must have one"):
        unpack_zip(write(tmp_path / "two.zip", a="1", b="2"), ".jsonl")
