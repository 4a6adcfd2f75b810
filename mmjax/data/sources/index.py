"""Indices of large files: made in one pass, kept beside the file or in a cache folder, and checked before each use."""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmjax.data.documents import MAX_DOCUMENT_BYTES, DocumentError
from mmjax.data.sources.interface import sample_digest

_VERSION = 1
_OPEN_FILES = 200                               # per process; many systems allow 1024
Index = dict[str, np.ndarray]


def cached_index(file: str, kind: str, build: Callable[[str], Index]) -> Index:
    """The index of a file, from its cache if that was made of a file of the same size, time and digest.

    It is kept in `.{name}.{kind}.index.npz` beside the file or, where that cannot be written, in
    `$XDG_CACHE_HOME/mmjax/index`. Failing both it is made again each time.

    Args:
        file: what the index is of.
        kind: which index, for a file can have several.
        build: makes it; its arrays hold no Python objects.
    """
    stat = os.stat(file)
    stamp = f"{_VERSION} {kind} {stat.st_size} {stat.st_mtime_ns} {sample_digest(file)}"
    for place in places(file, f"{kind}.index.npz"):
        if (index := _load(place, stamp)) is not None:
            return index
    index = build(file)
    for place in places(file, f"{kind}.index.npz"):
        if _save(place, stamp, index):
            break
    return index


def places(file: str, ending: str) -> list[Path]:
    """Where something made of a file may be kept: hidden beside it, or in the cache folder."""
    path = Path(file).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmjax" / "index"
    name = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
    return [path.with_name(f".{path.name}.{ending}"), cache / f"{name}.{ending}"]


def _load(place: Path, stamp: str) -> Index | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if str(stored["stamp"]) != stamp:
                return None
            return {name: stored[name] for name in stored.files if name != "stamp"}
    except Exception:                               # zip files can be damaged in many ways; the index is made anew
        return None


def _save(place: Path, stamp: str, index: Index) -> bool:
    """Writes the cache, complete or not at all; False if that cannot be done here."""
    partial = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f"{place.name}.", suffix=".partial", dir=place.parent)
        with os.fdopen(handle, "wb") as f:
            np.savez(f, stamp=np.array(stamp), **index)
        os.replace(partial, place)
        return True
    except OSError:
        if partial is not None and os.path.exists(partial):
            os.unlink(partial)
        return False


class _Handle:
    """An open file, closed when nobody has it any more: neither the cache nor a thread that is reading."""

    def __init__(self, file: str):
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _open(file: str, made: tuple[int, int]) -> _Handle:
    return _Handle(file)


class ByteFile:
    """Reads ranges of a file that must stay as it was when this was made."""

    def __init__(self, file: str):
        self.file, self._stamp = file, file_stamp(os.stat(file))

    def read(self, start: int, stop: int) -> bytes:
        """Reads bytes [start, stop).

        Raises:
            DocumentError: if they are more than a document may have, or the file was changed meanwhile.
            OSError: if the file cannot be read.
        """
        if stop - start > MAX_DOCUMENT_BYTES:
            raise DocumentError(f"{stop - start} bytes; the limit is {MAX_DOCUMENT_BYTES}")
        handle = _open(self.file, self._stamp)
        if file_stamp(os.fstat(handle.descriptor)) != self._stamp:
            raise DocumentError(f"{self.file} was changed after it was opened")
        data = os.pread(handle.descriptor, stop - start, start)
        if len(data) != stop - start:
            raise DocumentError(f"bytes {start} to {stop} end at {start + len(data)}")
        return data


def file_stamp(stat: os.stat_result) -> tuple[int, int]:
    """What changes when a file is written."""
    return stat.st_size, stat.st_mtime_ns
