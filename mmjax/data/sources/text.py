"""Plain text, a document a line of JSON or a row of parquet."""

import os

from mmjax.data.documents import Document, Text
from mmjax.data.sources.interface import Dropped
from mmjax.data.sources.parquet import ParquetSource, ParquetTable
from mmjax.data.sources.records import JSON_LINES, open_json, take


class TextSource(ParquetSource):
    """Documents of one Text each, of files that end in .jsonl or .parquet.

    Args:
        path: a file or a folder of them.
        field: the field or column of the text.
        key: the field or column that names a document, if there is such; else the file and the record do.
        on_bad_shard: see FileSource.
    """

    suffixes = (*JSON_LINES, ".parquet")

    def __init__(self, path: str | os.PathLike, *, field: str = "text", key: str = "id", on_bad_shard: str = "raise"):
        self._field, self._key = field, key
        super().__init__(path, on_bad_shard=on_bad_shard)

    def open_shard(self, file: str) -> "_Shard":
        return _Shard(file, self._field, self._key)


class _Shard:
    def __init__(self, file: str, field: str, key: str):
        self._name, self._field, self._key, self.dropped = os.path.basename(file), field, key, Dropped()
        parquet = file.endswith(".parquet")
        self._records = ParquetTable(file, (field,), (key,)) if parquet else open_json(file)
        self.ends = self._records.ends if parquet else None

    def __len__(self) -> int:
        return len(self._records)

    def read(self, k: int) -> Document:
        record = self._records.object(k)
        key = record.get(self._key)
        return Document((Text(take(record, self._field, str)),),
                        str(key) if isinstance(key, str | int) else f"{self._name}:{k}")
