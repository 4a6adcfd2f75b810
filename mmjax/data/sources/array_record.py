"""Our own ArrayRecord files, one serialised document a record."""

import os

import grain

from mmjax.data import documents
from mmjax.data.documents import Document, DocumentError
from mmjax.data.sources.interface import BadShard, Dropped, FileSource


class ArrayRecords:
    """Records of an ArrayRecord file as bytes, by number. Raises BadShard if the file is truncated or unreadable."""

    def __init__(self, file: str):
        try:
            self._records = grain.sources.ArrayRecordDataSource([file])
            self._count = len(self._records)
        except (RuntimeError, OSError) as e:
            raise BadShard(f"{file} is not a complete ArrayRecord file (truncated or unreadable): {e}", 0) from e

    def __len__(self) -> int:
        return self._count

    def read(self, k: int) -> bytes:
        """Record k. Raises DocumentError if its checksum does not fit."""
        try:
            return self._records[k]
        except RuntimeError as e:                   # Grain may give no message
            raise DocumentError(str(e) or "cannot be read") from e


class ArrayRecordSource(FileSource):
    """Random access to what `documents.write_documents` wrote: a file or a folder of them. See FileSource."""

    suffixes = (documents.SUFFIX,)

    def __init__(self, path: str | os.PathLike, *, on_bad_shard: str = "raise"):
        super().__init__(path, on_bad_shard=on_bad_shard)

    def open_shard(self, file: str) -> "_Shard":
        return _Shard(file)


class _Shard:
    def __init__(self, file: str):
        self._records, self.dropped = ArrayRecords(file), Dropped()

    def __len__(self) -> int:
        return len(self._records)

    def read(self, k: int) -> Document:
        return documents.from_bytes(self._records.read(k))
