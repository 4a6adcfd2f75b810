"""Work in units: each makes its files once, and a run that starts again does only those that are missing.

A unit is done when its record `<name>.json` exists: it is written last, and names the unit's inputs, the files made
(with size and SHA-256) and what was counted. Files go to their places by rename, so a run killed at any moment leaves
whole units and nothing half-made under a name that counts. A unit's files depend on its inputs alone, so nothing
changes when two workers happen to do the same one, or when workers are more or fewer.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines import files


@dataclasses.dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        name: of its record, and the beginning of the names of its files; unique in its stage.
        inputs: (path, fingerprint) of what it reads. Another fingerprint makes the unit anew.
        options: further JSON values the work needs to know.
    """

    name: str
    inputs: tuple[tuple[str, str], ...]
    options: tuple[Any, ...] = ()

    def describe(self) -> list:
        return [self.name, [list(i) for i in self.inputs], list(self.options)]


# (unit, folder to write in) -> ({path from the output folder: local file}, {table: {reason: count}})
Work = Callable[[Unit, Path], tuple[Mapping[str, Path], Mapping[str, Mapping[str, int]]]]


def file_name(path: str) -> str:
    """A name for the unit of a file: its own, and of its folder enough to tell it from others of that name."""
    return f"{os.path.basename(path)}-{hashlib.sha256(os.path.dirname(path).encode()).hexdigest()[:8]}"


def read_record(output: str, stage: str, unit: Unit) -> dict[str, Any] | None:
    """The record of a unit if it is done: same inputs, and all its files are there in full size; else None."""
    try:
        record = json.loads(files.read(_record_path(output, stage, unit)))
    except (FileNotFoundError, ValueError):
        return None
    if record["unit"] != json.loads(json.dumps(unit.describe())):
        return None
    whole = all(files.size(os.path.join(output, name)) == made["bytes"] for name, made in record["files"].items())
    return record if whole else None


class _DoUnit(beam.DoFn):
    """Does a unit unless it is done."""

    def __init__(self, output: str, stage: str, work: Work):
        self._output, self._stage, self._work = output, stage, work

    def process(self, unit: Unit):
        done = read_record(self._output, self._stage, unit) is not None
        Metrics.counter("units", "kept" if done else "made").inc()
        if not done:
            with tempfile.TemporaryDirectory() as folder:
                made, counts = self._work(unit, Path(folder))
                self._commit(unit, made, counts)

    def _commit(self, unit: Unit, made: Mapping[str, Path], counts: Mapping[str, Mapping[str, int]]):
        listed = {}
        for name, local in sorted(made.items()):
            listed[name] = dict(bytes=os.path.getsize(local), sha256=files.digest(local))
            files.upload(local, os.path.join(self._output, name))
        record = dict(unit=unit.describe(), files=listed, counts={k: dict(sorted(v.items())) for k, v in
                                                                  sorted(counts.items())})
        files.write(_record_path(self._output, self._stage, unit), json.dumps(record, indent=1).encode())


def do_units(units: Sequence[Unit], output: str, stage: str, work: Work, options: PipelineOptions
             ) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Does what is missing of some units, in parallel, and waits for it.

    Args:
        units: with different names.
        output: the folder that holds everything the pipeline makes.
        stage: names the folder of the records: `<output>/work/<stage>/`.
        work: does one unit; must be picklable. Its files depend on the unit alone.
        options: of Beam; says which runner.

    Returns:
        The records of all units in their order, and how many units were made now and how many kept.
    """
    with_runner = beam.Pipeline(options=options)
    _ = (with_runner | beam.Create(list(units), reshuffle=False) | beam.Reshuffle()
         | stage >> beam.ParDo(_DoUnit(output, stage, work)))
    result = with_runner.run()
    result.wait_until_finish()
    tally = {c.key.metric.name: c.committed or c.attempted for c in result.metrics().query()["counters"]
             if c.key.metric.namespace == "units"}
    records = [read_record(output, stage, unit) for unit in units]
    missing = [unit.name for unit, record in zip(units, records, strict=True) if record is None]
    if missing:
        raise RuntimeError(f"stage {stage!r} left {len(missing)} of {len(units)} units undone, first {missing[0]!r}; "
                           "run the same command again")
    return records, {k: tally.get(k, 0) for k in ("made", "kept")}


def _record_path(output: str, stage: str, unit: Unit) -> str:
    return os.path.join(output, "work", stage, f"{unit.name}.json")
