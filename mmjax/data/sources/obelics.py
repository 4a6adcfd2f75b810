"""Interleaved web pages in parquet with the columns of OBELICS."""

import json
import os
from typing import Any

from mmjax.data.documents import Document, DocumentError, Image, Segment, Text
from mmjax.data.sources.images import ImageFolder, read_reference
from mmjax.data.sources.interface import Dropped
from mmjax.data.sources.parquet import ParquetSource, ParquetTable
from mmjax.data.sources.records import take

_POLICIES = ("drop_document", "drop_image")


class ObelicsSource(ParquetSource):
    """Rows with the lists `images` and `texts`, of which exactly one is set at each position.

    An image is encoded bytes, {"bytes", "path"} as Hugging Face stores images, or the name of a file. The key is the
    "url" of `general_metadata` if it has one, else the file and the row.

    Args:
        path: a `.parquet` or a folder of them.
        images: folder that image names are relative to; "" is the folder of the file.
        missing: when an image is an address, is not there or has no bytes: `drop_document` (the record is damaged), or
            `drop_image`, which leaves that image out of the page.
        on_bad_shard: see FileSource.

    Source: OBELICS (arXiv:2306.16527), build_obelics.
    """

    suffixes = (".parquet",)

    def __init__(self, path: str | os.PathLike, *, images: str = "", missing: str = "drop_document",
                 on_bad_shard: str = "raise"):
        if missing not in _POLICIES:
            raise ValueError(f"obelics missing={missing!r} is unknown; known: {', '.join(_POLICIES)}")
        self._images, self._missing = images, missing
        super().__init__(path, on_bad_shard=on_bad_shard)

    def open_shard(self, file: str) -> "_Shard":
        return _Shard(file, ImageFolder(self._images or os.path.dirname(file) or "."), self._missing)


class _Shard:
    def __init__(self, file: str, images: ImageFolder, missing: str):
        self._table = ParquetTable(file, ("images", "texts"), ("general_metadata",))
        self._name, self._images, self._missing = os.path.basename(file), images, missing
        self.ends, self.dropped = self._table.ends, Dropped()

    def __len__(self) -> int:
        return len(self._table)

    def read(self, k: int) -> Document:
        row = self._table.object(k)
        images, texts = take(row, "images", list), take(row, "texts", list)
        if len(images) != len(texts):
            raise DocumentError(f"{len(images)} images but {len(texts)} texts; they must be aligned")
        segments = [self._segment(i, image, text) for i, (image, text) in enumerate(zip(images, texts, strict=True))]
        return Document(tuple(s for s in segments if s is not None), _url(row) or f"{self._name}:{k}")

    def _segment(self, i: int, image: Any, text: str | None) -> Segment | None:
        if (image is None) == (text is None):
            raise DocumentError(f"position {i} has {'both' if text is not None else 'neither'} an image and a text")
        if text is not None:
            return Text(text)
        try:
            return Image(_image_bytes(image, self._images))
        except DocumentError as e:
            if self._missing == "drop_image":
                return None
            raise DocumentError(f"position {i}: {e}") from e


def _image_bytes(value: Any, folder: ImageFolder) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise DocumentError("image has neither bytes nor a name")
    return read_reference(value, folder)


def _url(row: dict[str, Any]) -> str:
    try:
        url = json.loads(row["general_metadata"])["url"]
    except (KeyError, TypeError, ValueError):
        return ""
    return url if isinstance(url, str) else ""
