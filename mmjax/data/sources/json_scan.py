"""Where the elements of a JSON list begin and end, found without parsing or holding the file."""

import json
import os
import re
from typing import BinaryIO

import numpy as np

from mmjax.data.documents import DocumentError
from mmjax.data.sources.interface import BadShard

_CHUNK = 4 << 20
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_CHANGE = np.zeros(256, np.int8)                # of the depth, by byte
_CHANGE[[ord("["), ord("{")]], _CHANGE[[ord("]"), ord("}")]] = 1, -1
_STRUCTURE = _CHANGE != 0
_STRUCTURE[_COMMA] = True
_KEY = re.compile(rb'("(?:[^"\\]|\\.)*")\s*:\s*$')
_KEY_BYTES = 1024                               # a longer key is not looked for


def scan_list(file: str, field: str = "") -> np.ndarray:
    """Finds the elements of the list that a file is or, if `field` is set, that its object has under that name.

    Args:
        file: JSON in UTF-8.
        field: "" or a key of the outermost object.

    Returns:
        int64[n, 2] the first byte of every element and the one after its last; white space may surround it.

    Raises:
        BadShard: if the file ends too early; with the number of elements before.
        DocumentError: if the file is something else, or has no such list.
    """
    with open(file, "rb") as f:
        root = f.read(_KEY_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if root != (b"{" if field else b"["):
            want = f"an object with the list {field!r}" if field else "a list"
            raise DocumentError(f"{file} begins with {root!r}; it must be JSON, {want}")
        f.seek(0)
        events, complete = _events(f, 2 if field else 1)
        extents = _elements(f, events, field)
    if not complete:
        raise BadShard(f"{file} ends inside its JSON, at byte {os.path.getsize(file)}", max(0, len(extents or ())))
    if extents is None:
        raise DocumentError(f"{file} has no list {field!r}")
    return np.array(extents, np.int64).reshape(-1, 2)


def _events(f: BinaryIO, level: int) -> tuple[list[tuple[int, int]], bool]:
    """(byte, what) of all brackets that open or close a value at `level` of nesting and of the commas inside it, and
    whether everything is closed at the end."""
    events, base, depth, inside, escaping = [], 0, 0, 0, 0
    while chunk := f.read(_CHUNK):
        data = np.frombuffer(chunk, np.uint8)
        quotes = _real_quotes(data, escaping)
        marks = np.flatnonzero(_STRUCTURE[data])
        marks = marks[(np.searchsorted(quotes, marks) + inside) % 2 == 0]
        change = _CHANGE[data[marks]].astype(np.int64)
        after = depth + np.cumsum(change)
        chosen = after + (change < 0) == level
        events += zip((marks[chosen] + base).tolist(), data[marks[chosen]].tolist(), strict=True)
        depth = int(after[-1]) if len(after) else depth
        inside = (inside + len(quotes)) % 2
        escaping = _run_of_backslashes(data, len(data), escaping) % 2
        base += len(data)
    return events, depth == 0 and not inside


def _real_quotes(data: np.ndarray, escaping: int) -> np.ndarray:
    """Positions of the quotes that no backslash makes a character; `escaping` is 1 if one stands before `data`."""
    quotes = np.flatnonzero(data == _QUOTE)
    suspects = quotes[(quotes == 0) | (data[quotes - 1] == _BACKSLASH)]
    escaped = [q for q in suspects.tolist() if _run_of_backslashes(data, q, escaping) % 2]
    return np.setdiff1d(quotes, escaped, assume_unique=True) if escaped else quotes


def _run_of_backslashes(data: np.ndarray, end: int, before: int) -> int:
    start = end
    while start and data[start - 1] == _BACKSLASH:
        start -= 1
    return end - start + (before if start == 0 else 0)


def _elements(f: BinaryIO, events: list[tuple[int, int]], field: str) -> list[tuple[int, int]] | None:
    extents, start = None, -1
    for at, what in events:
        if what == ord("[") and (not field or _key(f, at) == field):
            extents, start = [], at + 1
        elif what == ord("{"):
            start = -1
        elif start >= 0 and (what == _COMMA or _holds_something(f, extents, start, at)):
            extents.append((start, at))
            start = at + 1
        if what == ord("]"):
            start = -1
    return extents


def _holds_something(f: BinaryIO, extents: list, start: int, stop: int) -> bool:
    """Whether there is an element before a closing bracket; only an empty list has none."""
    f.seek(start)
    return bool(extents or f.read(min(stop - start, _CHUNK)).strip() or stop - start > _CHUNK)


def _key(f: BinaryIO, at: int) -> str:
    """The key whose value begins at a byte of an object."""
    first = max(0, at - _KEY_BYTES)
    f.seek(first)
    found = _KEY.search(f.read(at - first))
    try:
        return json.loads(found[1]) if found else ""
    except ValueError:
        return ""
