"""Documents: the one shape all data has, and the ArrayRecord files that hold them.

A caption pair, a web page, a chat and a few-shot prompt are all a list of segments, each a text, an image or
a video. Images stay encoded (JPEG, PNG, ...) until the loader needs their pixels.
"""

import bisect
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import grain
import msgpack
from array_record.python.array_record_module import ArrayRecordWriter

MAX_DOCUMENT_BYTES = 256 << 20
MAX_SEGMENTS = 10_000
MAX_FRAMES = 10_000
SUFFIX = ".array_record"
_VERSION = 1
_TEXT, _IMAGE, _VIDEO = 0, 1, 2


class DocumentError(ValueError):
    """A document, or the record it should be read from, breaks a rule; the message says which."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of text; `weight` multiplies the loss of each of its tokens (0 for a prompt)."""

    text: str
    weight: float = 1.0

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise DocumentError(f"Text.text is a {type(self.text).__name__}; it must be a str")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise DocumentError(f"text holds a lone surrogate {self.text[e.start]!r} at character {e.start}") from e
        if not isinstance(self.weight, (int, float)) or not math.isfinite(self.weight) or self.weight < 0:
            raise DocumentError(f"Text.weight={self.weight!r} must be a finite number of at least 0")


@dataclasses.dataclass(frozen=True)
class Image:
    """An encoded image file."""

    data: bytes

    def __post_init__(self):
        if not isinstance(self.data, bytes):
            raise DocumentError(f"Image.data is a {type(self.data).__name__}; it must be bytes (an encoded image)")


@dataclasses.dataclass(frozen=True)
class Video:
    """Encoded frames in order of time."""

    frames: tuple[bytes, ...]

    def __post_init__(self):
        object.__setattr__(self, "frames", tuple(self.frames))
        if not 1 <= len(self.frames) <= MAX_FRAMES:
            raise DocumentError(f"a Video has {len(self.frames)} frames; it needs 1 to {MAX_FRAMES}")
        if not all(isinstance(f, bytes) for f in self.frames):
            raise DocumentError("Video.frames must all be bytes (encoded images)")


Segment = Text | Image | Video


@dataclasses.dataclass(frozen=True)
class Document:
    """Segments in reading order; `key` names the document in logs and results."""

    segments: tuple[Segment, ...]
    key: str = ""

    def __post_init__(self):
        object.__setattr__(self, "segments", tuple(self.segments))
        if not 1 <= len(self.segments) <= MAX_SEGMENTS:
            raise DocumentError(f"document {self.key!r} has {len(self.segments)} segments; "
                                f"it needs 1 to {MAX_SEGMENTS}")
        for i, segment in enumerate(self.segments):
            if not isinstance(segment, Segment):
                raise DocumentError(f"segment {i} of document {self.key!r} is a {type(segment).__name__}; "
                                    "it must be a Text, an Image or a Video")


def to_bytes(document: Document) -> bytes:
    """Serialises a document by msgpack.

    Raises:
        DocumentError: if the result is larger than MAX_DOCUMENT_BYTES.
    """
    segments = []
    for s in document.segments:
        match s:
            case Text():
                segments.append([_TEXT, s.text, float(s.weight)])
            case Image():
                segments.append([_IMAGE, s.data])
            case Video():
                segments.append([_VIDEO, list(s.frames)])
    data = msgpack.packb([_VERSION, document.key, segments])
    _check_size(data, repr(document.key))
    return data


def from_bytes(data: bytes) -> Document:
    """Reads what `to_bytes` wrote, trusting nothing of it.

    Raises:
        DocumentError: if the bytes are not exactly one well-formed document of this version.
    """
    _check_size(data, "record")
    try:
        value = msgpack.unpackb(data, max_array_len=max(MAX_SEGMENTS, MAX_FRAMES), max_map_len=0, max_ext_len=0)
    except Exception as e:  # msgpack raises seven unrelated types on bad bytes
        raise DocumentError(f"record of {len(data)} bytes is not a document: {e or type(e).__name__}") from e
    match value:
        case [version, str(key), list(segments)] if version == _VERSION:
            return Document(tuple(_segment(i, s) for i, s in enumerate(segments)), key)
        case [int(version), *_] if version != _VERSION:
            raise DocumentError(f"document format version {version}; this release reads version {_VERSION}")
    raise DocumentError("record is not [version, key, segments]")


def _segment(i: int, value) -> Segment:
    match value:
        case [0, str(text), float(weight)]:
            return Text(text, weight)
        case [1, bytes(data)]:
            return Image(data)
        case [2, list(frames)]:
            return Video(tuple(frames))
    raise DocumentError(f"segment {i} is not [0, text, weight], [1, image] or [2, frames]")


def _check_size(data: bytes, name: str):
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DocumentError(f"document {name} has {len(data)} bytes; the limit is {MAX_DOCUMENT_BYTES}")


def write_documents(path: str | os.PathLike, documents: Iterable[Document]) -> int:
    """Writes documents to one ArrayRecord file that appears under its name only when it is complete.

    Args:
        path: file to write, ending in `.array_record`; its folder is made.
        documents: at least one document, taken one at a time.

    Returns:
        The number of documents written.

    Raises:
        DocumentError: if there are no documents or one is too large. Nothing is left behind then.
        ValueError: if the name has another suffix, which `DocumentSource` would not find.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path={str(path)!r} must end in {SUFFIX!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    try:
        writer = ArrayRecordWriter(str(partial), "group_size:1")  # one record per chunk: random reads are 47x faster
        try:
            for document in documents:
                writer.write(to_bytes(document))
                count += 1
        finally:
            writer.close()
        if not count:
            raise DocumentError(f"no documents to write to {path}")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def record_files(path: str | os.PathLike) -> list[str]:
    """The ArrayRecord files at `path`: the file itself, or every `*.array_record` in that folder, sorted.

    Raises:
        FileNotFoundError: if there is no such file or folder, or the folder holds no ArrayRecord file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(str(f) for f in path.glob(f"*{SUFFIX}"))
        if not files:
            raise FileNotFoundError(f"data folder {path} holds no *{SUFFIX} file; build the data set first")
        return files
    if not path.exists():
        raise FileNotFoundError(f"data path {path} does not exist; give an {SUFFIX} file or a folder of them")
    return [str(path)]


class DocumentSource(Sequence[Document]):
    """Random access to the documents of one ArrayRecord file or folder.

    Raises:
        FileNotFoundError: if nothing is there.
        DocumentError: from the constructor if a file is truncated, unreadable or empty, and from
            `source[i]` if that record is corrupt; both name the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.files = record_files(path)
        self._ends, total = [], 0
        for file in self.files:
            total += _count(file)
            self._ends.append(total)
        self._records = grain.sources.ArrayRecordDataSource(self.files)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Document:
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        try:
            return from_bytes(self._records[i])
        except (DocumentError, RuntimeError) as e:
            raise DocumentError(f"{self.name(i)}: {e or 'cannot be read'}") from e

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))

    def name(self, i: int) -> str:
        """The file and the record number inside it, for messages."""
        k = bisect.bisect_right(self._ends, i)
        return f"{self.files[k]} record {i - (self._ends[k - 1] if k else 0)}"


def _count(file: str) -> int:
    try:
        count = len(grain.sources.ArrayRecordDataSource([file]))
    except (RuntimeError, OSError) as e:
        raise DocumentError(f"{file} is not a complete ArrayRecord file (truncated or unreadable): {e}") from e
    if not count:
        raise DocumentError(f"{file} holds no documents")
    return count
