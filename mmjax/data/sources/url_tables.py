"""Tables of captions and addresses (CC3M, CC12M, LAION), joined with the images that img2dataset fetched."""

import hashlib
import os
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from mmjax.data.documents import Document, DocumentError, Text
from mmjax.data.sources.fetched import FetchedImages, digest
from mmjax.data.sources.index import Index, cached_index
from mmjax.data.sources.interface import Dropped
from mmjax.data.sources.parquet import ParquetSource, ParquetTable
from mmjax.data.sources.records import open_lines, take


class Table(Protocol):
    """Rows of a caption and an address."""

    ends: np.ndarray | None

    def __len__(self) -> int: ...

    def pair(self, k: int) -> tuple[str, str]:
        """(caption, address) of row k; DocumentError if it has none."""

    def urls(self) -> Iterator[str | None]:
        """The addresses in order, None for damaged rows."""


class UrlTableSource(ParquetSource):
    """What the formats share: a row becomes [Image, Text(caption)] with its address as the key.

    Rows whose image was not fetched are left out and counted, as dead links are no fault of a file. The images are
    found by the address in their `key.json`, so a table may be a part of what was fetched, or have better captions.

    Args:
        path: a table or a folder of them.
        images: folder of the tar shards that img2dataset wrote (output_format webdataset).
        on_bad_shard: see FileSource; for the tables and the shards alike.
    """

    def __init__(self, path: str | os.PathLike, *, images: str, on_bad_shard: str = "raise"):
        self._images = FetchedImages(images, on_bad_shard=on_bad_shard)
        super().__init__(path, on_bad_shard=on_bad_shard)
        self.dropped += self._images.dropped
        self._fingerprint += self._images.fingerprint()

    def open_shard(self, file: str) -> "_Shard":
        table, kind = self.open_table(file)
        return _Shard(file, table, kind, self._images)

    def open_table(self, file: str) -> tuple[Table, str]:
        """The rows of a file, and which columns they were taken from."""
        raise TypeError(f"{type(self).__name__} does not say how the rows of {file} look")


class Cc3mSource(UrlTableSource):
    """Lines "caption TAB address" without a header, as CC3M's `Train_GCC-training.tsv`. See UrlTableSource."""

    suffixes = (".tsv",)

    def open_table(self, file: str) -> tuple[Table, str]:
        return _Lines(file, url=1), "second"


class Cc12mSource(UrlTableSource):
    """Lines "address TAB caption" without a header, as CC12M's `cc12m.tsv`. See UrlTableSource."""

    suffixes = (".tsv",)

    def open_table(self, file: str) -> tuple[Table, str]:
        return _Lines(file, url=0), "first"


class LaionSource(UrlTableSource):
    """Rows of parquet with an address and a caption, as LAION's and COYO's. See UrlTableSource.

    Args:
        url, caption: names of the columns.
    """

    suffixes = (".parquet",)

    def __init__(self, path: str | os.PathLike, *, images: str, url: str = "URL", caption: str = "TEXT",
                 on_bad_shard: str = "raise"):
        self._url, self._caption = url, caption
        super().__init__(path, images=images, on_bad_shard=on_bad_shard)

    def open_table(self, file: str) -> tuple[Table, str]:
        kind = hashlib.blake2b(self._url.encode(), digest_size=6).hexdigest()
        return _Columns(file, self._url, self._caption), kind


class _Lines:
    ends = None

    def __init__(self, file: str, url: int):
        self._lines, self._url = open_lines(file), url

    def __len__(self) -> int:
        return len(self._lines)

    def pair(self, k: int) -> tuple[str, str]:
        fields = self._lines.text(k).split("\t")
        if len(fields) != 2:
            raise DocumentError(f"row has {len(fields)} fields between tabs; it must have a caption and an address")
        return fields[1 - self._url], fields[self._url]

    def urls(self) -> Iterator[str | None]:
        for k in range(len(self)):
            try:
                yield self.pair(k)[1]
            except DocumentError:
                yield None


class _Columns:
    def __init__(self, file: str, url: str, caption: str):
        self._table, self._names = ParquetTable(file, (url, caption)), (caption, url)
        self.ends = self._table.ends

    def __len__(self) -> int:
        return len(self._table)

    def pair(self, k: int) -> tuple[str, str]:
        row = self._table.object(k)
        caption, url = (take(row, name, str) for name in self._names)
        return caption, url

    def urls(self) -> Iterator[str | None]:
        for g, rows in enumerate(np.diff(self.ends, prepend=0).tolist()):
            try:
                values = self._table.column(self._names[1], g)
            except DocumentError:                   # costs its own rows only
                values = [None] * rows
            yield from (value if isinstance(value, str) else None for value in values)


class _Shard:
    def __init__(self, file: str, table: Table, kind: str, images: FetchedImages):
        self._table, self._images, self.dropped = table, images, Dropped()
        index = cached_index(file, f"urls-{kind}", lambda _: _index_urls(table))
        places = np.where(index["good"], images.look_up(index["digests"]), -1)
        self._rows = np.flatnonzero(places >= 0)
        self._places = places[self._rows]
        for row in np.flatnonzero(~index["good"]).tolist():
            self.dropped.add("damaged row", f"{file} row {row}")
        if dead := int(index["good"].sum()) - len(self._rows):
            self.dropped.add("image was not fetched", f"{dead} rows of {file}", dead)
        self.ends = None if table.ends is None else np.searchsorted(self._rows, table.ends)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, k: int) -> Document:
        caption, url = self._table.pair(int(self._rows[k]))
        image = self._images[int(self._places[k])]
        if image.key != url:
            raise DocumentError(f"the addresses {url!r} and {image.key!r} have one digest")
        return Document((*image.segments, Text(caption)), url)


def _index_urls(table: Table) -> Index:
    """digests int64[n] of the addresses, and good bool[n], whether a row has one."""
    digests, good = np.zeros(len(table), np.int64), np.zeros(len(table), bool)
    for k, url in enumerate(table.urls()):
        if url is not None:
            digests[k], good[k] = digest(url), True
    return dict(digests=digests, good=good)
