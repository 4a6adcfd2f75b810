"""Encoded images that stand beside their documents as files, or inside them as base64."""

import base64
import binascii
import os
import re
import stat
from pathlib import Path

from mmjax.data.documents import MAX_DOCUMENT_BYTES, DocumentError

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


class ImageFolder:
    """Reads files of a folder by relative name. What a name leads to outside of the folder is never read.

    Args:
        folder: it may itself be a link; links inside it are followed only to what lies inside it.

    Raises:
        ValueError: if there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike):
        if not os.path.isdir(folder):
            raise ValueError(f"image folder {str(folder)!r} does not exist; set the option images")
        self._root = Path(os.path.realpath(folder))

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises DocumentError if the name is unsafe, or names no regular file of a sane size."""
        if not name or "\0" in name or os.path.isabs(name) or ".." in Path(name).parts:
            raise DocumentError(f"image name {name!r} must be relative to the image folder, without '..'")
        path = os.path.realpath(self._root / name)
        if not Path(path).is_relative_to(self._root):
            raise DocumentError(f"image {name!r} is a link out of the image folder {self._root}")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe would wait for a writer
        except OSError as e:
            raise DocumentError(f"image {name!r} of folder {self._root} cannot be read: {e.strerror}") from e
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_DOCUMENT_BYTES:
            os.close(descriptor)
            raise DocumentError(f"image {name!r} of folder {self._root} is no regular file of at most "
                                f"{MAX_DOCUMENT_BYTES} bytes")
        with open(descriptor, "rb", buffering=0) as f:
            return f.read()


def read_reference(value: object, folder: ImageFolder) -> bytes:
    """An image that a record refers to: a `data:` URL, or a name in the image folder; nothing is ever fetched.

    Raises:
        DocumentError: if it is another URL, or cannot be read.
    """
    if not isinstance(value, str):
        raise DocumentError(f"image reference {value!r:.80} must be a string")
    if found := _DATA_URL.match(value):
        return from_base64(value[found.end():])
    if "://" in value[:10]:
        raise DocumentError(f"image {value[:80]!r} is an address; images are read from files, fetch them first")
    return folder.read(value)


def from_base64(text: str) -> bytes:
    """Strict base64; DocumentError if it is something else."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise DocumentError(f"image {text[:20]!r}... of {len(text)} characters is not base64: {e}") from e
