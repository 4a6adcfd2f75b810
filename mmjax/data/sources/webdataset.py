"""Captioned images and videos in tar shards, as img2dataset and WebDataset write them, through our own index."""

import json
import os

from mmjax.data.documents import Document, Image, Text, Video
from mmjax.data.sources.interface import FileSource
from mmjax.data.sources.records import decode, parse_object, take
from mmjax.data.sources.tar_samples import Part, TarSamples

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif")
VIDEO_EXTENSIONS = ("mp4", "mov", "webm", "mkv", "avi")


class WebDatasetSource(FileSource):
    """A sample `key.jpg` with `key.txt`, or with `key.json` that has a "caption", becomes [Image, Text], key `key`; one
    with a video file [Video, Text].

    The offsets of each shard are found once and kept (see `index.cached_index`). Samples that are not safe or not
    complete are left out (see TarSamples). The counts that img2dataset writes beside a shard are checked.

    Args:
        path: a `.tar` or a folder of them.
        caption: extensions of the caption text, the first found counts; `json` is read as an object with a "caption".
        on_bad_shard: see FileSource.
    """

    suffixes = (".tar",)

    def __init__(self, path: str | os.PathLike, *, caption: tuple[str, ...] = ("txt", "caption", "json"),
                 on_bad_shard: str = "raise"):
        self._parts = (Part("an image", IMAGE_EXTENSIONS + VIDEO_EXTENSIONS), Part("a caption", tuple(caption)))
        super().__init__(path, on_bad_shard=on_bad_shard)

    def open_shard(self, file: str) -> "_Shard":
        return _Shard(file, self._parts)

    def expected_count(self, file: str) -> int | None:
        counted = written_by_img2dataset(file)
        return super().expected_count(file) if counted is None else counted


class _Shard:
    def __init__(self, file: str, parts: tuple[Part, ...]):
        self._samples = TarSamples(file, parts)
        self.dropped = self._samples.dropped

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, k: int) -> Document:
        kind, data = self._samples.read(k, 0)
        extension, caption = self._samples.read(k, 1)
        text = take(parse_object(caption), "caption", str) if extension == "json" else decode(caption)
        visual = Video((data,)) if kind in VIDEO_EXTENSIONS else Image(data)
        return Document((visual, Text(text)), self._samples.key(k))


def written_by_img2dataset(file: str) -> int | None:
    """The number of images that img2dataset says it wrote into a shard, in the `_stats.json` beside it."""
    try:
        with open(f"{os.path.splitext(file)[0]}_stats.json", encoding="utf-8") as f:
            return int(json.load(f)["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
