"""Files of any format that `mmjax.data.sources` reads to shards: one record, one document, checked and counted.

A unit is a part of one input file and makes one shard, so a run that starts again does only the parts that are missing.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines import files, launch, shards, units
from mmjax.data.documents import Document, DocumentError
from mmjax.data.sources import check_source, open_source

MAX_DAMAGED = 0.01
DAMAGED = "damaged"
_NAMED = 5

# A document to the reason it is dropped for, "" if it is kept.
Check = Callable[[Document], str]


def run(format: str, inputs: list[str], output: str, check: Check, options: PipelineOptions, *,
        source_options: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None, parts: int = 1,
        max_damaged: float = MAX_DAMAGED) -> shards.Manifest:
    """Runs what is missing of a conversion.

    Args:
        format: of `open_source`.
        inputs: patterns of files.
        output: folder for everything.
        check: what is kept; picklable.
        options: of Beam.
        source_options: of the format.
        settings: JSON values that `check` depends on.
        parts: shards to make of each input file.
        max_damaged: share of the records that may be unreadable.

    Raises:
        FileNotFoundError: if there is no input.
        ValueError: if the folder was begun under other settings, too many records are damaged, or nothing is left.
    """
    source_options = dict(source_options or {})
    check_source(format, source_options)
    settings = dict(settings or {}, format=format, source_options=source_options, parts=parts, version=1)
    shards.check_settings(output, settings)
    todo = make_units(files.find(inputs), parts)
    work = functools.partial(convert, format=format, source_options=source_options, check=check)
    records, tally = units.do_units(todo, output, "shards", work, options)
    logging.info("shards: %d made, %d kept from an earlier run", tally["made"], tally["kept"])
    counts = shards.add_counts(r["counts"] for r in records)
    damaged, read = counts["documents"].get(DAMAGED, 0), counts["documents"]["read"]
    if damaged > max_damaged * read:
        raise ValueError(f"{damaged} of {read} records are damaged, more than max_damaged={max_damaged:g} of them; the "
                         "log names the first")
    return shards.write_manifest(output, records, counts, settings)


def make_units(inputs: list[tuple[str, int]], parts: int) -> list[units.Unit]:
    """A unit for every part of every file; its shard is named after the file, so that more files change no names."""
    if parts < 1:
        raise ValueError(f"parts={parts} must be at least 1")
    return [units.Unit(f"{units.file_name(path)}-{k:05d}-of-{parts:05d}", ((path, str(size)),), (k, parts))
            for path, size in inputs for k in range(parts)]


def convert(unit: units.Unit, folder: Path, format: str, source_options: Mapping[str, Any], check: Check):
    """Does the unit of one part of one file; see `units.Work`."""
    (path, _), = unit.inputs
    k, parts = unit.options
    counts = {"documents": Counter(), "left out when the file was opened": Counter()}
    with files.local_copy(path) as local:
        source = open_source(format, local, **source_options)
        if k == 0:
            counts["left out when the file was opened"].update(source.dropped)
        numbers = range(k * len(source) // parts, (k + 1) * len(source) // parts)
        made, count = shards.write_shard(folder, f"{unit.name}.array_record",
                                         _checked(source, numbers, check, counts["documents"]))
    return made, {**counts, "shard": {"documents": count}}


def _checked(source, numbers: range, check: Check, counts: Counter) -> Iterator[Document]:
    for i in numbers:
        counts["read"] += 1
        try:
            document = source[i]
            reason = check(document)
        except DocumentError as e:
            if counts[DAMAGED] < _NAMED:
                logging.warning("damaged: %s", e)
            reason = DAMAGED
        counts[reason or "kept"] += 1
        if not reason:
            yield document


def finish(manifest: shards.Manifest, output: str):
    """Prints what a conversion left."""
    for table, row in manifest.counts.items():
        if row:
            print(f"{table}: " + ", ".join(f"{n} {reason}" for reason, n in row.items()))
    print(f"{sum(manifest.records.values())} documents in {len(manifest.records)} shards in {output}")


def parser(description: str):
    """The options that every conversion has."""
    p = launch.parser(description)
    p.add_argument("--parts", type=int, default=1, help="shards to make of each input file")
    p.add_argument("--max_damaged", type=float, default=MAX_DAMAGED, help="share of records that may be unreadable")
    return p
