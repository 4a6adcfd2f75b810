"""What a pipeline leaves: ArrayRecord shards of documents and a manifest that says what they must be."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines import files
from mmjax.data.documents import Document, write_documents

MANIFEST = "manifest.json"
SETTINGS = "settings.json"


def shard_name(k: int, n: int) -> str:
    return f"documents-{k:05d}-of-{n:05d}.array_record"


def write_shard(folder: Path, name: str, documents: Iterable[Document]) -> tuple[dict[str, Path], int]:
    """Writes one shard.

    Returns:
        {name: its file in `folder`} and the number of documents. Of no documents there is no file.
    """
    documents = iter(documents)
    first = next(documents, None)
    if first is None:
        return {}, 0
    path = folder / name
    return {name: path}, write_documents(path, _chain(first, documents))


def check_settings(output: str, settings: Mapping[str, Any]):
    """Keeps the settings of an output folder beside it; its files all come from the same ones.

    Raises:
        ValueError: if the folder was begun under other settings; names each that differs.
    """
    path = os.path.join(output, SETTINGS)
    try:
        found = _flat(json.loads(files.read(path)))
    except FileNotFoundError:
        files.write(path, json.dumps(settings, indent=1, sort_keys=True).encode())
        return
    wanted = _flat(json.loads(json.dumps(settings)))
    differ = [f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} now" for k in sorted({*found, *wanted})
              if found.get(k) != wanted.get(k)]
    if differ:
        raise ValueError(f"{output} was begun under other settings ({'; '.join(differ)}); "
                         "give the same ones, or another --output")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the output folder holds.

    Attributes:
        records: documents in each shard, by file name.
        files: bytes and SHA-256 of each shard, by file name.
        counts: table -> reason -> count, over everything that was read.
        settings: the pipeline was run with.
    """

    records: dict[str, int]
    files: dict[str, dict[str, Any]]
    counts: dict[str, dict[str, int]]
    settings: dict[str, Any]


def write_manifest(output: str, unit_records: Iterable[Mapping[str, Any]], counts: Mapping[str, Mapping[str, int]],
                   settings: Mapping[str, Any]) -> Manifest:
    """Writes the manifest of the shards that these units made, each with a count `shard: documents`.

    Raises:
        ValueError: if there are no documents at all, or the folder holds a shard that is not of these units.
    """
    shards = {name: (made, record["counts"]["shard"]["documents"]) for record in unit_records
              for name, made in record["files"].items()}
    if not shards:
        raise ValueError(f"no document is left; what was dropped: {json.dumps(counts)}")
    strange = {os.path.basename(f) for f in files.sizes(os.path.join(output, "*.array_record"))} - set(shards)
    if strange:
        raise ValueError(f"{output} holds {sorted(strange)[0]} and {len(strange) - 1} more that this run did not make; "
                         "delete them, or give another --output")
    manifest = Manifest({n: c for n, (_, c) in sorted(shards.items())}, {n: m for n, (m, _) in sorted(shards.items())},
                        {k: dict(v) for k, v in counts.items()}, json.loads(json.dumps(settings)))
    files.write(os.path.join(output, MANIFEST), json.dumps(dataclasses.asdict(manifest), indent=1).encode())
    return manifest


def read_manifest(output: str) -> Manifest:
    """The manifest of an output folder. Raises FileNotFoundError."""
    return Manifest(**json.loads(files.read(os.path.join(output, MANIFEST))))


def add_counts(tables: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of the counts of many units, by table and reason, sorted."""
    total: dict[str, Counter] = {}
    for counts in tables:
        for table, row in counts.items():
            total.setdefault(table, Counter()).update(row)
    return {table: dict(sorted(row.items())) for table, row in sorted(total.items())}


def _chain(first: Document, rest: Iterable[Document]):
    yield first
    yield from rest


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, a.b for b in a."""
    flat = {}
    for k, v in settings.items():
        flat.update(_flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v})
    return flat
