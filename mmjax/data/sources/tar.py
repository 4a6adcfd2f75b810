"""Members of a tar file by their byte offsets, from its headers alone. Nothing is ever extracted, no link followed."""

import dataclasses
import os
from collections.abc import Iterator
from typing import BinaryIO

from mmjax.data.sources.interface import BadShard

_BLOCK = 512
_MAX_EXTENSION = 1 << 20                        # bytes of a header that extends the next one
_RESYNC = 1 << 20                               # bytes searched at a time for the next sound header
_REGULAR, _FOLDER, _GLOBAL, _EXTENDED, _LONG_NAME, _LONG_LINK = (b"0", b"\0", b"7"), b"5", b"g", b"x", b"L", b"K"
_KINDS = {b"1": "hard link", b"2": "symbolic link", b"3": "character device", b"4": "block device", b"6": "pipe",
          b"S": "sparse file"}


@dataclasses.dataclass(frozen=True)
class Member:
    """A member of a tar file.

    Attributes:
        name: as the archive has it.
        start, size: where its bytes are.
        problem: why it must not be used, or "".
    """

    name: str
    start: int
    size: int
    problem: str = ""


def read_members(file: str) -> Iterator[Member]:
    """Yields the members of a tar file (ustar, GNU or pax), folders left out, in order.

    A header that is damaged becomes one member with a problem, and the search goes on at the next sound header.

    Raises:
        BadShard: if the file was cut (a member ends after it, or the zeros that end an archive are not there or not
            whole) or something follows those zeros. `found` is then the number of members before.
    """
    size = os.path.getsize(file)
    with open(file, "rb", buffering=1 << 16) as f:
        at, count, extension = 0, 0, {}
        while True:
            f.seek(at)
            block = f.read(_BLOCK)
            if len(block) < _BLOCK:
                raise BadShard(f"{file} was cut: the block of zeros that ends a tar file is not there at byte {at}",
                               count)
            if not any(block):
                _check_end(f, at, size, count)
                return
            header = _parse(block)
            if header is None or extension.get("size", 0) < 0:
                count += 1
                yield Member(f"header at byte {at}", at, 0, "damaged header")
                at, extension = _next_header(f, at + _BLOCK, size), {}
                continue
            kind, name, length = header
            data, end = at + _BLOCK, at + _BLOCK + length
            if kind in (_EXTENDED, _LONG_NAME, _LONG_LINK, _GLOBAL):
                extension = _extend(f, kind, length, extension)
            else:
                name = extension.get("path", name)
                length = extension.get("size", length) if kind not in _KINDS else length
                extension, end = {}, data + length
                if end > size:
                    raise BadShard(f"{file} was cut: {name!r} has {length} bytes from byte {data}, the file ends at "
                                   f"{size}", count)
                if kind != _FOLDER and not (kind in _REGULAR and name.endswith("/")):   # as old archives say it
                    count += 1
                    yield Member(name, data, length, _problem(kind, name))
            at = -(-end // _BLOCK) * _BLOCK


def _parse(block: bytes) -> tuple[bytes, str, int] | None:
    """(kind, name, size) of a header block, or None if its checksum or a number is wrong."""
    try:
        stored = int(block[148:156].strip(b" \0"), 8)
        size = _number(block[124:136])
    except ValueError:
        return None
    if size < 0 or stored != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        return None
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    kind = block[156:157]
    return kind, name.decode("utf-8", "backslashreplace"), 0 if kind in _KINDS and kind != b"S" else size


def _number(field: bytes) -> int:
    """Octal digits, or base 256 if the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] == 0x80 else -1
    return int(field.strip(b" \0") or b"0", 8)


def _extend(f: BinaryIO, kind: bytes, length: int, extension: dict) -> dict:
    """What the headers before a member say of it: its path and its size."""
    if kind in (_GLOBAL, _LONG_LINK) or not 0 <= length <= _MAX_EXTENSION:
        return extension
    data = f.read(length)
    if kind == _LONG_NAME:
        return extension | dict(path=data.partition(b"\0")[0].decode("utf-8", "backslashreplace"))
    return extension | _pax(data)


def _pax(data: bytes) -> dict:
    """path and size of pax records, each "length key=value\\n"; reading ends at the first that is malformed."""
    found, at = {}, 0
    while at < len(data):
        digits = data[at:at + 20].partition(b" ")[0]
        if not digits.isdigit() or int(digits) <= len(digits):
            break
        key, _, value = data[at + len(digits) + 1:at + int(digits) - 1].partition(b"=")
        if key == b"path":
            found["path"] = value.decode("utf-8", "backslashreplace")
        elif key == b"size":
            found["size"] = int(value) if value.isdigit() else -1
        at += int(digits)
    return found


def _problem(kind: bytes, name: str) -> str:
    if kind not in _REGULAR:
        return _KINDS.get(kind, f"member of unknown type {kind!r}")
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "absolute name"
    if ".." in name.replace("\\", "/").split("/"):
        return "name with .."
    return "name with control characters" if "\0" in name or "\n" in name else ""


def _check_end(f: BinaryIO, at: int, size: int, count: int):
    if size % _BLOCK:
        raise BadShard(f"{f.name} was cut: its {size} bytes are no multiple of {_BLOCK}", count)
    f.seek(at)
    while data := f.read(_RESYNC):
        if data.count(0) != len(data):
            raise BadShard(f"{f.name} goes on after its end at byte {at}; archives one after the other are not read: "
                           "pack them as one", count)


def _next_header(f: BinaryIO, at: int, size: int) -> int:
    """The byte of the next block that is a sound header with the mark "ustar"; failing that, of the last block."""
    start = at
    while at < size:
        f.seek(at)
        data = f.read(_RESYNC)
        for offset in range(0, len(data) - _BLOCK + 1, _BLOCK):
            block = data[offset:offset + _BLOCK]
            if block[257:262] == b"ustar" and _parse(block) is not None:
                return at + offset
        at += _RESYNC
    return max(start, size - size % _BLOCK - _BLOCK)
