"""A manifest of file sizes and CRC-32 sums, so that a damaged checkpoint is named instead of restored.

Orbax notices truncation, but restores arrays with flipped bits without a word. The manifest is written after all other
files of a step and before the folder gets its final name, so a step without one was never completed.
"""

import asyncio
import json
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orbax.checkpoint.path import atomicity

MANIFEST = "digests.json"
REWRITTEN = {"_CHECKPOINT_METADATA", "commit_success.txt", MANIFEST}   # at the top, while the folder is renamed
_CHUNK = 8 << 20


class DigestedPath(atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary folder of a step, which gets its manifest right before the commit."""

    async def finalize(self):
        if self.get_final().name.isdigit():         # the step itself; its items pass through here, too
            await asyncio.to_thread(write_manifest, Path(self.get()))
        await super().finalize()


def write_manifest(folder: Path) -> None:
    """Writes `digests.json`: {relative file name: [bytes, crc32]} of all files below `folder`."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    names = [n for n in names if n not in REWRITTEN]
    (folder / MANIFEST).write_text(json.dumps(dict(zip(names, _digests(folder, names), strict=True)), indent=1))


def damage(folder: Path, share: int = 0, shares: int = 1) -> list[str]:
    """Checks the files of a step against its manifest.

    Args:
        folder: the step's folder.
        share: which of `shares` equal parts of the files to read; processes divide the work.
        shares: number of parts.

    Returns:
        One text per missing, truncated or altered file, naming it; empty if all is well.
    """
    manifest = folder / MANIFEST
    try:
        wanted = {name: tuple(digest) for name, digest in json.loads(manifest.read_text()).items()}
    except FileNotFoundError:
        return [f"{manifest} is missing: the save was not completed, or files were removed"]
    except (ValueError, AttributeError, TypeError):
        return [f"{manifest} is not readable as JSON"]
    names = sorted(wanted)[share::shares]
    problems = []
    for name, got in zip(names, _digests(folder, names), strict=True):
        if got is None:
            problems.append(f"{folder / name} is missing")
        elif got[0] != wanted[name][0]:
            problems.append(f"{folder / name} has {got[0]} bytes, but {wanted[name][0]} were written")
        elif got != wanted[name]:
            problems.append(f"{folder / name} has changed since it was written (CRC-32 differs)")
    return problems


def _digests(folder: Path, names: Iterable[str]) -> list[tuple[int, int] | None]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:        # crc32 runs without the interpreter lock
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(path: Path) -> tuple[int, int] | None:
    """(bytes, crc32), or None if there is no such file."""
    size = crc = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    except OSError:
        return None
    return size, crc
