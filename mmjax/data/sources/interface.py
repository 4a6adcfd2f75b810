"""What a source of documents is, and what sources that are made of files share: finding, counting, naming, checking."""

import bisect
import hashlib
import importlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from absl import logging

from mmjax.data.documents import Document, DocumentError

BAD_SHARD = ("raise", "skip")
_NAMED = 5                                      # of the things left out, this many a reason are named in the log
_SAMPLE = 64 << 10                              # bytes read at the head, the middle and the tail of a file


class DocumentSource(Protocol):
    """Documents by number, in an order that never changes. It can be pickled, and read from several threads.

    Attributes:
        files: the files the documents are in, in order.
        dropped: reason -> how many documents were left out when the source was opened; they have no number.
    """

    files: list[str]
    dropped: Counter[str]

    def __len__(self) -> int:
        """The number of documents."""

    def __getitem__(self, i: int) -> Document:
        """Reads document i. Raises DocumentError, which names file and record, if it cannot be had."""

    def name(self, i: int) -> str:
        """The file and the record number inside it, for messages."""

    def blocks(self) -> np.ndarray | None:
        """int64[k] ends of the runs of documents that are cheap to read together; None if any order is cheap."""

    def fingerprint(self) -> list[list[Any]]:
        """[base name, size, digest, documents] of every file as JSON values; other content gives another."""


class Shard(Protocol):
    """The documents of one file."""

    dropped: "Dropped"

    def __len__(self) -> int: ...

    def read(self, k: int) -> Document:
        """Reads document k of the file. Raises DocumentError, which need not name it, or OSError."""


class Dropped:
    """Counts what is left out while a file is opened; the first few of a reason are named in the log."""

    def __init__(self):
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, name: str, count: int = 1):
        self.counts[reason] += count
        if self.counts[reason] <= _NAMED or count > 1:
            logging.warning("left out %s: %s", name, reason)


class BadShard(DocumentError):
    """A whole file cannot be used; `found` documents could be seen in it."""

    def __init__(self, message: str, found: int | None = None):
        super().__init__(message)
        self.found = found


class FileSource(Sequence[Document]):
    """The documents of one file, or of all files of a format in a folder, in order of their names.

    A format says how one file is opened (`open_shard`) and what its file names end in (`suffixes`), or which the files
    are (`find`).

    Args:
        path: a file or a folder.
        on_bad_shard: what becomes of a file that is truncated or unreadable: `raise`, or `skip` it, with its documents
            counted in `dropped`.
        files: those of `path`, where the format knows them.

    Raises:
        FileNotFoundError: if nothing is there.
        DocumentError: if a file is truncated, unreadable or empty, or holds another number of documents than the
            manifest.json beside it says; names the file, and the documents expected and found.
        ValueError: if `on_bad_shard` is unknown.
    """

    suffixes: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike, *, on_bad_shard: str = "raise", files: Sequence[str] | None = None):
        if on_bad_shard not in BAD_SHARD:
            raise ValueError(f"on_bad_shard={on_bad_shard!r} is unknown; known: {', '.join(BAD_SHARD)}")
        self.files: list[str] = []
        self.dropped: Counter[str] = Counter()
        self._shards: list[Shard] = []
        self._fingerprint: list[list[Any]] = []
        for file in self.find(path) if files is None else files:
            self._add(file, on_bad_shard)
        self._ends = np.cumsum([len(shard) for shard in self._shards]).tolist()
        if not self._ends or not self._ends[-1]:
            raise DocumentError(f"{path} holds no documents; left out: {dict(self.dropped) or 'none'}")

    @classmethod
    def find(cls, path: str | os.PathLike, **options: Any) -> list[str]:
        """The files of a source with these options, in order, unopened. Raises as `find_files` does."""
        return find_files(path, cls.suffixes)

    def open_shard(self, file: str) -> Shard:
        """Opens one file. Raises BadShard or another DocumentError, or OSError, if that fails."""
        raise TypeError(f"{type(self).__name__} does not say how to open {file}")

    def expected_count(self, file: str) -> int | None:
        """The documents a file should have, by what stands beside it; None if nothing says so."""
        return count_of_manifest(file)

    def _add(self, file: str, on_bad_shard: str):
        expected = self.expected_count(file)
        try:
            shard = self.open_shard(file)
            if not len(shard) and not shard.dropped.counts:
                raise BadShard(f"{file} holds no documents", 0)
            if expected is not None and not 0 <= expected - len(shard) <= shard.dropped.counts.total():
                raise BadShard(f"{file} is not the file that was written", len(shard))
        except (DocumentError, OSError) as e:
            if on_bad_shard == "raise":
                raise _with_counts(e, file, expected) from e
            lost = expected if expected is not None else getattr(e, "found", None) or 0
            self.dropped["shard damaged"] += lost
            self._fingerprint.append(_fingerprint_if_readable(file))
            logging.warning("left out the whole of %s with %s documents: %s", file, lost or "an unknown number of", e)
            return
        self.files.append(file)
        self._shards.append(shard)
        self.dropped += shard.dropped.counts
        self._fingerprint.append(file_fingerprint(file, len(shard)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Document:
        shard, k = self._locate(i)
        try:
            return self._shards[shard].read(k)
        except (DocumentError, OSError) as e:
            raise DocumentError(f"{self.name(i)}: {e}") from e

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))

    def name(self, i: int) -> str:
        shard, k = self._locate(i)
        return f"{self.files[shard]} record {k}"

    def blocks(self) -> np.ndarray | None:
        return None

    def fingerprint(self) -> list[list[Any]]:
        return [list(entry) for entry in self._fingerprint]

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        shard = bisect.bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)


def find_files(path: str | os.PathLike, suffixes: Iterable[str]) -> list[str]:
    """The file at `path`, or the files in that folder whose names end in one of `suffixes`, sorted.

    Raises:
        FileNotFoundError: if there is no such file or folder, or nothing in the folder has such a name.
    """
    path, suffixes = Path(path), tuple(suffixes)
    if not path.exists():
        raise FileNotFoundError(f"data path {path} does not exist; give a file or a folder of files that end in "
                                f"{' or '.join(suffixes)}")
    if not path.is_dir():
        return [str(path)]
    files = sorted(str(f) for f in path.iterdir() if f.name.endswith(suffixes) and not f.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"data folder {path} holds no file that ends in {' or '.join(suffixes)}; build the "
                                "data set first")
    return files


def count_of_manifest(file: str) -> int | None:
    """The number of documents that the manifest.json beside a file says it has; None if nothing says so."""
    folder, name = os.path.split(file)
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as f:
            records = json.load(f)["records"]
            return int(records[name]) if name in records else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sample_digest(file: str) -> str:
    """A digest of the size of a file and of 64 KiB at its head, its middle and its tail, where indices stand."""
    size = os.path.getsize(file)
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(file, "rb", buffering=0) as f:
        for start in sorted({0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)}):
            f.seek(start)
            digest.update(f.read(_SAMPLE))
    return digest.hexdigest()


def file_fingerprint(file: str, documents: int = 0) -> list[Any]:
    """[base name, size, digest, documents] of a file."""
    return [os.path.basename(file), os.path.getsize(file), sample_digest(file), documents]


def _fingerprint_if_readable(file: str) -> list[Any]:
    """That of a file which may be missing or closed to us; then it has no size and no digest."""
    try:
        return file_fingerprint(file)
    except OSError:
        return [os.path.basename(file), 0, "", 0]


def require(module: str) -> ModuleType:
    """Imports a package of the extra [data]. Raises ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise ImportError(f"this data format needs {module.partition('.')[0]}, which is not installed or incomplete "
                          f"({e}); install it with: pip install 'mmjax[data]'") from e


def _with_counts(error: Exception, file: str, expected: int | None) -> DocumentError:
    text = str(error) if file in str(error) else f"{file}: {error}"
    counts = [f"{n} documents {word}" for n, word in ((expected, "expected"), (getattr(error, "found", None), "found"))
              if n is not None]
    return DocumentError(f"{text}; {', '.join(counts)}" if counts else text)
