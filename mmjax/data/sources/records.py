"""Records of text files by number: lines and elements of JSON lists, each read from its place when it is asked for."""

import json
from typing import Any

import numpy as np

from mmjax.data.documents import DocumentError
from mmjax.data.sources.index import ByteFile, Index, cached_index
from mmjax.data.sources.interface import BadShard
from mmjax.data.sources.json_scan import scan_list

_CHUNK = 8 << 20
_BOM = b"\xef\xbb\xbf"
JSON_LINES = (".jsonl", ".ndjson")


class Records:
    """Byte ranges of a file by number. Reading one raises DocumentError if it is not what it is read as."""

    def __init__(self, file: str, extents: np.ndarray):
        self._bytes, self._extents = ByteFile(file), extents

    def __len__(self) -> int:
        return len(self._extents)

    def text(self, k: int) -> str:
        """Record k as it stands, in UTF-8."""
        return decode(self._bytes.read(*self._extents[k].tolist()))

    def object(self, k: int) -> dict[str, Any]:
        """Record k, a JSON object."""
        return parse_object(self._bytes.read(*self._extents[k].tolist()))


def open_lines(file: str) -> Records:
    """The lines of a text file that are not empty, without their ends; a byte order mark is passed over."""
    return Records(file, cached_index(file, "lines", _index_lines)["extents"])


def open_json(file: str, field: str = "") -> Records:
    """The objects of a JSON file: the lines of `.jsonl`, else the elements of its list (see `scan_list`).

    Raises:
        BadShard: if the file was cut.
        DocumentError: if it is something else.
    """
    if file.endswith(JSON_LINES):
        return _open_json_lines(file)
    index = cached_index(file, f"list-{field}" if field else "list", lambda f: dict(extents=scan_list(f, field)))
    return Records(file, index["extents"])


def _open_json_lines(file: str) -> Records:
    index = cached_index(file, "lines", _index_lines)
    records = Records(file, index["extents"])
    if index["open_end"] and len(records):
        try:
            records.object(len(records) - 1)
        except DocumentError as e:
            raise BadShard(f"{file} ends inside record {len(records) - 1}: {e}", len(records) - 1) from e
    return records


def _index_lines(file: str) -> Index:
    """extents int64[n, 2] of lines that are not empty, and open_end, whether the last one has no end."""
    ends, size, start = [], 0, 0
    with open(file, "rb") as f:
        if f.read(len(_BOM)) == _BOM:
            start = len(_BOM)
        f.seek(0)
        returns = []                                # lines whose end is \r\n
        previous = b""
        while chunk := f.read(_CHUNK):
            data = np.frombuffer(chunk, np.uint8)
            at = np.flatnonzero(data == ord("\n"))
            before = np.concatenate([np.frombuffer(previous or b"\0", np.uint8), data])[at]
            ends.append(at + size)
            returns.append(before == ord("\r"))
            size, previous = size + len(data), chunk[-1:]
    ends, returns = (np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in (ends, returns))
    starts = np.concatenate([[start], ends + 1])
    stops = np.append(ends - returns, size)
    extents = np.stack([starts, stops], 1).astype(np.int64)
    return dict(extents=extents[extents[:, 1] > extents[:, 0]], open_end=np.array(size > starts[-1]))


def decode(data: bytes) -> str:
    """UTF-8 to text; DocumentError says where it is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DocumentError(f"not UTF-8: byte {e.start} of {len(data)} is {data[e.start]:#04x}") from e


def parse_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object; DocumentError if it is anything else."""
    text = data if isinstance(data, str) else decode(data)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DocumentError(f"not JSON: {e} in {_shortened(text.strip())}") from e
    if not isinstance(value, dict):
        raise DocumentError(f"a JSON {type(value).__name__}, {_shortened(text)}; it must be an object")
    return value


def take(record: dict[str, Any], name: str, *kinds: type) -> Any:
    """The field of a record, of one of `kinds`; DocumentError names the field and what it is."""
    if name not in record:
        raise DocumentError(f"no field {name!r}; it has {', '.join(map(repr, record)) or 'none'}")
    if not isinstance(record[name], kinds) or isinstance(record[name], bool) and bool not in kinds:
        raise DocumentError(f"field {name!r} is {_shortened(repr(record[name]))}; it must be of type "
                            f"{' or '.join(k.__name__ for k in kinds)}")
    return record[name]


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
