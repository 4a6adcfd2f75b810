"""Rows of parquet files by number. A file is read by row groups, of which the last few are kept."""

import collections
import os
import threading
from typing import Any

import numpy as np

from mmjax.data.documents import DocumentError
from mmjax.data.sources.index import file_stamp
from mmjax.data.sources.interface import BadShard, FileSource, require

_KEPT_GROUPS = 4                                # decoded row groups kept per file and process; as `shuffle.WINDOW`
_MAX_GROUP_BYTES = 4 << 30


class ParquetTable:
    """Rows of a parquet file as dicts, read by row groups.

    Args:
        file: the file.
        needed: columns that must be there.
        wanted: columns that are read too if they are there.

    Raises:
        BadShard: if the file is truncated or unreadable.
        DocumentError: if a needed column is not there, or a row group is too large to be held.
        ImportError: without pyarrow.
    """

    def __init__(self, file: str, needed: tuple[str, ...], wanted: tuple[str, ...] = ()):
        self.file, parquet = file, require("pyarrow.parquet")
        try:
            metadata = parquet.read_metadata(file)
            names = metadata.schema.to_arrow_schema().names
        except (OSError, UnicodeDecodeError, require("pyarrow").ArrowException) as e:
            raise BadShard(f"{file} is not a complete parquet file (truncated or unreadable): {e}", 0) from e
        if missing := [name for name in needed if name not in names]:
            raise DocumentError(f"{file} has no column {missing[0]!r}; it has {', '.join(names)}")
        self._columns = [name for name in (*needed, *wanted) if name in names]
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        self.ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > _MAX_GROUP_BYTES:
            raise DocumentError(f"{file} has a row group of {largest} bytes; the limit is {_MAX_GROUP_BYTES}: write it "
                                "anew with smaller row groups")
        self._stamp = file_stamp(os.stat(file))
        self._forget()

    def _forget(self):
        self._opened, self._groups, self._lock = None, collections.OrderedDict(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_opened", "_groups", "_lock")}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def object(self, k: int) -> dict[str, Any]:
        """Row k as Python values. Raises DocumentError if its row group is damaged."""
        g = int(np.searchsorted(self.ends, k, side="right"))
        row = k - (int(self.ends[g - 1]) if g else 0)
        try:
            return self._group(g).slice(row, 1).to_pylist()[0]
        except (OSError, UnicodeDecodeError, IndexError, require("pyarrow").ArrowException) as e:
            raise DocumentError(f"row group {g} cannot be read: {e}") from e

    def column(self, name: str, g: int) -> list[Any]:
        """The values of a column of row group g; raises as `object` does."""
        try:
            with self._lock:
                return self._file().read_row_group(g, columns=[name], use_threads=False)[name].to_pylist()
        except (OSError, UnicodeDecodeError, require("pyarrow").ArrowException) as e:
            raise DocumentError(f"row group {g} cannot be read: {e}") from e

    def _file(self):
        """The open file; the caller has the lock."""
        if file_stamp(os.stat(self.file)) != self._stamp:
            raise DocumentError(f"{self.file} was changed after it was opened")
        if self._opened is None:
            self._opened = require("pyarrow.parquet").ParquetFile(self.file, page_checksum_verification=True)
        return self._opened

    def _group(self, g: int):
        with self._lock:
            if g in self._groups:
                self._groups.move_to_end(g)
            else:
                self._groups[g] = self._file().read_row_group(g, columns=self._columns, use_threads=False)
                while len(self._groups) > _KEPT_GROUPS:
                    self._groups.popitem(last=False)
            return self._groups[g]


class ParquetSource(FileSource):
    """Files whose shards may have `ends` of runs of rows that are cheap to read together."""

    def blocks(self) -> np.ndarray | None:
        starts = [0, *self._ends[:-1]]
        if all(shard.ends is None for shard in self._shards):
            return None
        return np.unique(np.concatenate([start + (np.array([len(shard)]) if shard.ends is None else shard.ends)
                                         for start, shard in zip(starts, self._shards, strict=True)]))
