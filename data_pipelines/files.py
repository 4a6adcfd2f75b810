"""Files anywhere Beam reaches (local, gs://, s3://, hdfs://), written so that a reader sees all of a file or none."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

_CHUNK = 1 << 20


def find(patterns: Sequence[str]) -> list[tuple[str, int]]:
    """(path, bytes) of every file that one of the patterns matches, sorted by path, each once.

    Raises:
        FileNotFoundError: if a pattern matches nothing.
    """
    found = {}
    for pattern, match in zip(patterns, FileSystems.match(list(patterns)), strict=True):
        if not match.metadata_list:
            raise FileNotFoundError(f"no file matches {pattern!r}")
        found.update((m.path, m.size_in_bytes) for m in match.metadata_list)
    return sorted(found.items())


def sizes(pattern: str) -> dict[str, int]:
    """Bytes of every file that a pattern matches, by path; empty if there is none."""
    return {m.path: m.size_in_bytes for match in FileSystems.match([pattern]) for m in match.metadata_list}


def size(path: str) -> int | None:
    """Bytes of a file; None if it is not there."""
    return FileSystems.get_filesystem(path).size(path) if FileSystems.exists(path) else None


def open_read(path: str):
    """A binary file to read from, never decompressed by its name."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read(path: str) -> bytes:
    """The bytes of a file. Raises FileNotFoundError."""
    if not FileSystems.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    with open_read(path) as f:
        return f.read()


def upload(local: str | os.PathLike, path: str):
    """Copies a local file to `path`, where it appears, or takes the place of another, only when it is complete."""
    make_folder(os.path.dirname(path))
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    with open(local, "rb") as source, FileSystems.create(partial, "application/octet-stream",
                                                         CompressionTypes.UNCOMPRESSED) as target:
        shutil.copyfileobj(source, target, _CHUNK)
    FileSystems.rename([partial], [path])


def write(path: str, data: bytes):
    """Writes a small file, all of it or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "file")
        local.write_bytes(data)
        upload(local, path)


def make_folder(path: str):
    """Makes a folder where the file system has folders."""
    with contextlib.suppress(OSError):      # it is there, maybe since a moment ago by another worker
        FileSystems.mkdirs(path)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """The path of the file on this machine: itself if it is local, else a copy that lives as long as the context."""
    if os.path.exists(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        with open_read(path) as source, open(local, "wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        yield local


def digest(local: str | os.PathLike) -> str:
    """SHA-256 of a local file."""
    with open(local, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
