"""What a built data folder holds, and the building of one: all of it or nothing."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FILE = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a data folder, as they stand in its manifest.json.

    Attributes:
        name: which data set.
        version: raised whenever the same config would give other documents.
        config: the fields of the config it was built with, the seed among them.
        records: documents in each file, by path in the folder.
        labels: for each evaluation task with a closed set of answers, those answers exactly as the records have
            them (" seven", with the space), so that prompt + label is the text to score.
        fingerprint: SHA-256 over the names and bytes of all files.
    """

    name: str
    version: int
    config: Mapping[str, Any]
    records: Mapping[str, int]
    labels: Mapping[str, list[str]]
    fingerprint: str


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """Reads `folder`/manifest.json.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a manifest.
    """
    path = Path(folder) / FILE
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{path} does not exist, so {folder} is not a built data set; build it first") from e
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path} is not a manifest ({e}); delete the folder and build it again") from e


def build_once(
    folder: str | os.PathLike,
    name: str,
    version: int,
    config: Any,
    fill: Callable[[Path], tuple[dict[str, int], dict[str, list[str]]]],
) -> Manifest:
    """Builds a data folder, unless this very data set already stands there.

    The work happens in a hidden folder beside it, which is renamed when it is complete: whatever stands under the
    name `folder` is finished, however a build ended.

    Args:
        folder: where the data set goes; it may not exist yet, or be empty.
        name, version: of the data set.
        config: frozen dataclass of plain values.
        fill: writes the files into the folder it is given; returns Manifest's `records` and `labels`.

    Raises:
        ValueError: if the folder holds anything else: another data set, other settings, damaged files.
    """
    folder = Path(folder).absolute()
    config = json.loads(json.dumps(dataclasses.asdict(config)))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return _verify(folder, name, version, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.building-", dir=folder.parent))
    try:
        records, labels = fill(work)
        manifest = Manifest(name, version, config, records, labels, _fingerprint(work, records))
        text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
        (work / FILE).write_text(text, encoding="utf-8")
        work.chmod(0o755)  # mkdtemp's own is private
        return _publish(work, folder, manifest)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, folder: Path, manifest: Manifest) -> Manifest:
    try:
        work.rename(folder)
    except OSError:  # another process was first; its folder must be the same
        return _verify(folder, manifest.name, manifest.version, manifest.config)
    return manifest


def _verify(folder: Path, name: str, version: int, config: Mapping[str, Any]) -> Manifest:
    """The manifest of a folder that must hold this data set, undamaged."""
    fix = "delete it to build it again, or choose another folder"
    if not (folder / FILE).is_file():
        raise ValueError(f"{folder} is not empty and holds no {FILE}, so it is not a built data set; "
                         "choose another folder")
    manifest = read_manifest(folder)
    have = {"name": manifest.name, "version": manifest.version, **manifest.config}
    want = {"name": name, "version": version, **config}
    differ = [f"{k}={have.get(k)!r}, wanted {want.get(k)!r}" for k in have | want if have.get(k) != want.get(k)]
    if differ:
        raise ValueError(f"{folder} holds another data set ({'; '.join(differ)}); {fix}")
    missing = [file for file in manifest.records if not (folder / file).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; {fix}")
    if (found := _fingerprint(folder, manifest.records)) != manifest.fingerprint:
        raise ValueError(f"the files in {folder} have fingerprint {found[:12]}, their manifest says "
                         f"{manifest.fingerprint[:12]}: they were changed or damaged; {fix}")
    return manifest


def _fingerprint(folder: Path, files: Mapping[str, int]) -> str:
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file}\n{hashlib.sha256((folder / file).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
