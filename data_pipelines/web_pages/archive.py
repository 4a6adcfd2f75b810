"""Records of a web archive (WARC, plain or gzip), with every way it can be broken noticed, named and bounded.

fastwarc, left alone, ends quietly where a file is cut, and believes any Content-Length.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

MAX_RECORD_BYTES = 32 << 20
MAX_INFLATION, FREE_INFLATION = 100, 64 << 20   # a gzip member may grow 100-fold, and up to 64 MiB in any case
_CHUNK = 1 << 20


class ArchiveError(ValueError):
    """The rest of an archive cannot be read; the message says from which record on, and why."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A record that holds a page or an image.

    Attributes:
        number: its place in the archive, from 1.
        url, date: as in its headers.
        status: of HTTP; 200 for a `resource` record.
        content_type: media type in lower case without parameters, "" if none is given.
        charset: as the HTTP header gives it, or None.
        body: decoded from its transfer and content encodings.
    """

    number: int
    url: str
    date: str
    status: int
    content_type: str
    charset: str | None
    body: bytes


def read_records(stream: BinaryIO, counts: Counter[str], max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Record]:
    """Reads the responses and resources of an archive, a bounded part of it in memory at a time.

    Args:
        stream: the archive, plain or gzip (one member a record, or otherwise).
        counts: counts what is seen and what is skipped: records of other types, too large, without sound HTTP.
        max_bytes: cap of a record, and again of its decoded body.

    Yields:
        Records in order.

    Raises:
        ArchiveError: where the archive is cut or damaged, after all records before that place.
    """
    plain, number = Inflated(stream), 0
    try:
        for record in ArchiveIterator(plain, parse_http=False):
            number += 1
            block = _read_block(record, plain, max_bytes)
            if block is None:
                counts["record larger than the cap"] += 1
            elif record.record_type not in (WarcRecordType.response, WarcRecordType.resource):
                counts["of another type"] += 1
            elif (parsed := _parse(number, record, block, max_bytes, counts)) is not None:
                counts["read"] += 1
                yield parsed
    except (OSError, ArchiveError) as e:
        raise ArchiveError(f"cut at record {number if isinstance(e, ArchiveError) else number + 1}: "
                           f"{plain.damage or e}") from e
    if plain.damage:
        raise ArchiveError(f"cut at record {number + 1}: {plain.damage}")


class Inflated:
    """The bytes of a plain or gzip stream; where that breaks, they end and `damage` says why."""

    def __init__(self, stream: BinaryIO):
        self.damage = ""
        self._stream, self._pending, self._ended = stream, stream.read(_CHUNK), False
        self._gzip = self._pending[:2] == b"\x1f\x8b"
        self._member, self._taken, self._given, self._told = None, 0, 0, 0

    def tell(self) -> int:
        return self._told

    def read(self, size: int = -1) -> bytes:
        size = _CHUNK if size is None or size < 0 else size
        while not self.damage and self._fill():
            data = self._inflate(size) if self._gzip else self._take(size)
            if data:
                self._told += len(data)
                return data
        return b""

    def _fill(self) -> bool:
        if not self._pending and not self._ended:
            self._pending = self._stream.read(_CHUNK)
            self._ended = not self._pending
        if self._ended and self._member is not None:
            self.damage = "the file ends inside a gzip member"
        return not self._ended

    def _take(self, size: int) -> bytes:
        data, self._pending = self._pending[:size], self._pending[size:]
        return data

    def _inflate(self, size: int) -> bytes:
        if self._member is None:
            self._pending = self._pending.lstrip(b"\0")        # padding between members
            if not self._pending:
                return b""
            self._member, self._taken, self._given = zlib.decompressobj(31), 0, 0
        before = len(self._pending)
        try:
            data = self._member.decompress(self._pending, size)
        except zlib.error as e:
            self.damage = f"damaged gzip data ({e})"
            return b""
        self._pending = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        self._taken, self._given = self._taken + before - len(self._pending), self._given + len(data)
        if self._given > max(FREE_INFLATION, MAX_INFLATION * self._taken):
            self.damage = f"a gzip member grows from {self._taken} bytes to more than {self._given}"
            return b""
        if self._member.eof:
            self._member = None
        return data


def _read_block(record: WarcRecord, plain: Inflated, max_bytes: int) -> bytes | None:
    """The bytes of a record; None if they are more than the cap, which are then passed over piece by piece."""
    declared = record.headers.get("Content-Length", "")
    if not (declared.isascii() and declared.isdigit() and len(declared) <= 18):
        raise ArchiveError(f"Content-Length is {declared!r}" if declared else "its header is incomplete")
    length = int(declared)
    block = record.reader.read(min(length, max_bytes + 1))
    there = len(block)
    while there < length and (more := record.reader.read(min(length - there, _CHUNK))):
        there += len(more)
    if there < length:
        raise ArchiveError(f"it should have {length} bytes and has {there}")
    return block if length <= max_bytes else None


def _parse(number: int, record: WarcRecord, block: bytes, max_bytes: int, counts: Counter[str]) -> Record | None:
    url, date = record.headers.get("WARC-Target-URI", "").strip("<>"), record.headers.get("WARC-Date", "")
    if record.record_type == WarcRecordType.resource:
        return Record(number, url, date, 200, _media_type(record.headers.get("Content-Type")), None, block)
    try:
        http = WarcRecord.from_bytes(b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype="
                                     b"response\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n" % (len(block), block))
        http.parse_http(auto_decode="all", quirks_mode=True)
        body = http.reader.read(max_bytes + 1) or b""
        status = http.http_headers.status_code
    except (OSError, ValueError, AttributeError):
        status = None
    if status is None:
        counts["without sound HTTP"] += 1
        return None
    if len(body) > max_bytes:
        counts["body larger than the cap"] += 1
        return None
    return Record(number, url, date, status, _media_type(http.http_content_type), http.http_charset, body)


def _media_type(header: str | None) -> str:
    return (header or "").partition(";")[0].strip().lower()
