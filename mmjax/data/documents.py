"""Documents: the one shape all data has, and the writing of the ArrayRecord files that hold them.

A caption pair, a web page, a chat and a few-shot prompt are all a list of segments, each a text, an image or
a video. Images stay encoded (JPEG, PNG, ...) until the loader needs their pixels.
"""

import dataclasses
import math
import os
from collections.abc import Iterable
from pathlib import Path

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter

MAX_DOCUMENT_BYTES = 256 << 20
MAX_SEGMENTS = 10_000
MAX_FRAMES = 10_000
SUFFIX = ".array_record"
_VERSION = 1
_TEXT, _IMAGE, _VIDEO = 0, 1, 2
ROLES = ("", "system", "user", "assistant")


class DocumentError(ValueError):
    """A document, or the record it should be read from, breaks a rule; the message says which."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of text.

    Attributes:
        text: any string that UTF-8 can hold.
        weight: factor of the loss of each of its tokens; 0 for a prompt.
        role: who says it in a conversation, one of ROLES; "" outside of one. Neighbouring segments of one role, images
            among them, are one turn.
    """

    text: str
    weight: float = 1.0
    role: str = ""

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise DocumentError(f"Text.text is a {type(self.text).__name__}; it must be a str")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise DocumentError(f"text holds a lone surrogate {self.text[e.start]!r} at character {e.start}") from e
        if not isinstance(self.weight, (int, float)) or not math.isfinite(self.weight) or self.weight < 0:
            raise DocumentError(f"Text.weight={self.weight!r} must be a finite number of at least 0")
        _check_role(self)


@dataclasses.dataclass(frozen=True)
class Image:
    """An encoded image file, and the role of the turn it belongs to (see Text)."""

    data: bytes
    role: str = ""

    def __post_init__(self):
        if not isinstance(self.data, bytes):
            raise DocumentError(f"Image.data is a {type(self.data).__name__}; it must be bytes (an encoded image)")
        _check_role(self)


@dataclasses.dataclass(frozen=True)
class Video:
    """Encoded frames in order of time, or one video file as the only frame (see `video`), and the role of the turn they
    belong to (see Text)."""

    frames: tuple[bytes, ...]
    role: str = ""

    def __post_init__(self):
        object.__setattr__(self, "frames", tuple(self.frames))
        if not 1 <= len(self.frames) <= MAX_FRAMES:
            raise DocumentError(f"a Video has {len(self.frames)} frames; it needs 1 to {MAX_FRAMES}")
        if not all(isinstance(f, bytes) for f in self.frames):
            raise DocumentError("Video.frames must all be bytes (encoded images)")
        _check_role(self)


Segment = Text | Image | Video


def _check_role(segment: Segment):
    if segment.role not in ROLES:
        raise DocumentError(f"{type(segment).__name__}.role={segment.role!r} must be one of {', '.join(ROLES[1:])}, or "
                            "empty outside of a conversation")


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
    """Serialises a document by msgpack. A segment without a role is written as it was before there were roles.

    Raises:
        DocumentError: if the result is larger than MAX_DOCUMENT_BYTES.
    """
    segments = []
    for s in document.segments:
        match s:
            case Text():
                value = [_TEXT, s.text, float(s.weight)]
            case Image():
                value = [_IMAGE, s.data]
            case Video():
                value = [_VIDEO, list(s.frames)]
        segments.append([*value, s.role] if s.role else value)
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
        case [0, str(text), float(weight), *role]:
            kind, fields = Text, (text, weight)
        case [1, bytes(data), *role]:
            kind, fields = Image, (data,)
        case [2, list(frames), *role]:
            kind, fields = Video, (tuple(frames),)
        case _:
            role = None
    if role is None or len(role) > 1:
        raise DocumentError(f"segment {i} is not [0, text, weight], [1, image] or [2, frames], with or without a role")
    return kind(*fields, *role)


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
        ValueError: if the name has another suffix, which `sources.array_record` would not find.
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
