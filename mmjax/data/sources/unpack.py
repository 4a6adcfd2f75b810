"""Zipped files, unpacked once so that they can be read at random."""

import lzma
import os
import tempfile
import zipfile
import zlib
from typing import BinaryIO

from mmjax.data.sources.index import places
from mmjax.data.sources.interface import BadShard, sample_digest

_MAX_RATIO = 200                                # text of web pages shrinks to a fifth; bombs to a thousandth
_FREE = 1 << 20                                 # bytes that may be any ratio


def unpack_zip(file: str, suffix: str) -> str:
    """The path of the one member of a zip file whose name ends in `suffix`, unpacked.

    It is kept beside the zip file or in the cache folder, under a name with the digest of the zip file.

    Raises:
        BadShard: if the file is cut, damaged or encrypted, has no such member or several, or is a bomb.
        OSError: if there is no place to write it.
    """
    kept = [str(p) for p in places(file, f"unpacked-{sample_digest(file)}{suffix}")]
    for path in kept:
        if os.path.exists(path):
            return path
    try:
        with zipfile.ZipFile(file) as archive:
            return _unpack(archive, _only_member(archive, file, suffix), kept)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, ValueError) as e:
        raise BadShard(f"{file} is not a complete zip file: {e}") from e


def _only_member(archive: zipfile.ZipFile, file: str, suffix: str) -> zipfile.ZipInfo:
    members = [m for m in archive.infolist() if m.filename.endswith(suffix) and not m.is_dir()]
    if len(members) != 1:
        raise BadShard(f"{file} has {len(members)} members that end in {suffix}; it must have one")
    if members[0].file_size > _FREE + _MAX_RATIO * members[0].compress_size:
        raise BadShard(f"{file} would unpack {members[0].compress_size} bytes to {members[0].file_size}; the limit is "
                       f"{_MAX_RATIO} times as many")
    return members[0]


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, kept: list[str]) -> str:
    for path in kept:
        partial = None
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle, partial = tempfile.mkstemp(suffix=".partial", dir=os.path.dirname(path))
            with os.fdopen(handle, "wb") as out, archive.open(member) as data:
                while chunk := _read(data):
                    out.write(chunk)
            os.replace(partial, path)
            return path
        except OSError as e:
            error = e
        finally:
            if partial is not None and os.path.exists(partial):
                os.unlink(partial)
    raise error


def _read(data: BinaryIO) -> bytes:
    try:
        return data.read(1 << 20)
    except OSError as e:                            # so bz2 says that data is damaged; no other place would help
        raise zipfile.BadZipFile(str(e)) from e
