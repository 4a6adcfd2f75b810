"""Third stage, one shard at a time: the pages of a plan, read from the blobs, to documents."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack

from data_pipelines import files, shards
from data_pipelines.units import Unit
from data_pipelines.web_pages.extract import Place
from data_pipelines.web_pages.selection import read_plan
from mmjax.data.documents import Document, Image, Text


def assemble(unit: Unit, folder: Path, output: str):
    """Does the unit of one shard; see `units.Work`. Its input is the plan, its options (shard, shards)."""
    (path, _), = unit.inputs
    pages, _ = read_plan(files.read(path))
    blobs = Blobs(output)
    try:
        made, count = shards.write_shard(folder, shards.shard_name(*unit.options), documents(pages, blobs))
    finally:
        blobs.close()
    return made, {"shard": {"documents": count}}


def documents(pages, blobs: "Blobs") -> Iterator[Document]:
    """The documents of a plan, in its order, each with the address of its page as key."""
    for _, place, images in pages:
        url, segments = msgpack.unpackb(blobs.read(place))
        data = {i: Image(blobs.read(p)) for i, p in images}
        placed, parts = set(), []
        for s in segments:
            if isinstance(s, str):
                parts.append(Text(s))
            elif s in data and s not in placed:         # an image stands where it is first seen
                placed.add(s)
                parts.append(data[s])
        yield Document(_join_texts(parts), key=url)


class Blobs:
    """Pieces of blobs by place; keeps a few files open."""

    def __init__(self, output: str, keep: int = 32):
        self._output, self._keep, self._open = output, keep, {}

    def read(self, place: Place) -> bytes:
        """The bytes at a place. Raises ValueError if they are not those that were written."""
        if place.blob not in self._open:
            if len(self._open) == self._keep:
                self._open.pop(next(iter(self._open))).close()
            self._open[place.blob] = files.open_read(os.path.join(self._output, place.blob))
        file = self._open[place.blob]
        file.seek(place.offset)
        data = file.read(place.length)
        if zlib.crc32(data) != place.crc:
            raise ValueError(f"{os.path.join(self._output, place.blob)} is damaged at byte {place.offset}: delete it "
                             "and run the same command again")
        return data

    def close(self):
        for file in self._open.values():
            file.close()


def _join_texts(parts: list[Text | Image]) -> list[Text | Image]:
    """Neighbouring texts as one, a line each; they are left where an image between them was taken out."""
    joined: list[Text | Image] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(f"{joined[-1].text}\n{part.text}")
        else:
            joined.append(part)
    return joined
