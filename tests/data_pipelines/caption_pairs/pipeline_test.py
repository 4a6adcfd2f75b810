"""Tar shards of captioned images to shards: what is kept, what is dropped and why, and what is made again."""

import io
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("apache_beam", reason="needs the extra [pipelines]")

from data_pipelines import convert, launch, shards  # noqa: E402
from data_pipelines.caption_pairs import pipeline  # noqa: E402
from mmjax.data.documents import Document, Image, Text  # noqa: E402
from mmjax.data.sources import open_source  # noqa: E402


def png(seed: int, size: tuple[int, int] = (96, 80)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, samples: dict[str, tuple[bytes, str]]):
    """Samples as img2dataset writes them."""
    with tarfile.open(path, "w") as tar:
        for key, (image, caption) in samples.items():
            for suffix, data in (("png", image), ("txt", caption.encode()), ("json", b'{"status": "success"}')):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def documents(output: Path) -> list[Document]:
    return list(open_source("array_record", output))


@pytest.fixture
def pairs(tmp_path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    write_tar(folder / "00000.tar", {
        "000000000": (png(0), "a first caption"), "000000001": (png(1, (20, 90)), "small image"),
        "000000002": (png(2), " "), "000000003": (png(3, (80, 400)), "a long thin image"),
        "000000004": (png(4), "a fifth caption"), "000000005": (png(5)[:300], "a cut image")})
    write_tar(folder / "00001.tar", {"000010000": (png(6), "of the second shard")})
    return folder


def test_caption_pairs(pairs, tmp_path, capsys):
    argv = ["--input", f"{pairs}/*.tar", "--output", str(tmp_path / "out"), "--workers", "1", "--parts", "2"]
    pipeline.main(argv)
    assert "3 documents in 3 shards" in capsys.readouterr().out
    found = {d.key: d.segments for d in documents(tmp_path / "out")}
    assert found == {"000000000": (Image(png(0)), Text("a first caption")),
                     "000000004": (Image(png(4)), Text("a fifth caption")),
                     "000010000": (Image(png(6)), Text("of the second shard"))}
    manifest = shards.read_manifest(str(tmp_path / "out"))
    assert manifest.counts["documents"] == {
        "read": 7, "kept": 3, "too few words": 1, "image too small": 1, "image too long and thin": 1,
        "image truncated or damaged": 1}
    before = {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.array_record")}
    with pytest.raises(ValueError, match="min_words: 1 there, 2 now"):
        pipeline.main([*argv, "--min_words", "2"])
    next((tmp_path / "out").glob("00001.tar*.array_record")).unlink()
    pipeline.main(argv)
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").glob("*.array_record")} == before


def test_a_strange_shard_in_the_folder_is_refused(pairs, tmp_path):
    shards.write_shard(tmp_path, "other.array_record", [Document((Text("x"),))])
    with pytest.raises(ValueError, match="holds other.array_record"):
        pipeline.main(["--input", f"{pairs}/*.tar", "--output", str(tmp_path), "--workers", "1"])


def test_nothing_left_says_what_was_dropped(tmp_path, pairs):
    with pytest.raises(ValueError, match='no document is left; .*"unwanted": 7'):
        convert.run("webdataset", [f"{pairs}/*.tar"], str(tmp_path / "out"), unwanted, launch.beam_options())


def unwanted(document: Document) -> str:
    return "unwanted"
