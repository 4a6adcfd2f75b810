"""Web archives to interleaved documents: the three stages in order, and the report.

Run:     python -m data_pipelines.web_pages --input 'crawl/*.warc.gz' --output pages
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

import apache_beam as beam
from absl import logging
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines import files, launch, shards, units
from data_pipelines.web_pages import assemble, extract, selection
from data_pipelines.web_pages.rules import KEPT, PAGE_STAGES, PRESETS, ListPaths, Rules, list_digests

LISTS = ("hosts", "address_words", "images", "words")
MAX_DAMAGED = 0.01


def run(inputs: list[str], output: str, rules: Rules, options: PipelineOptions, *, image_folder: str = "",
        lists: ListPaths = (), num_shards: int = 16, max_damaged: float = MAX_DAMAGED, until: str = ""
        ) -> shards.Manifest | None:
    """Runs what is missing of the pipeline.

    Args:
        inputs: patterns of archives.
        output: folder for everything.
        rules: filters.
        options: of Beam.
        image_folder: pattern of fetched images, beside those in the archives.
        lists: what to block.
        num_shards: of the output; the same documents give the same shards.
        max_damaged: share of the archives that may be cut or damaged.
        until: "extract" ends after the first stage, which leaves the addresses of the images to fetch.

    Returns:
        The manifest; None if `until` ends the run before.

    Raises:
        FileNotFoundError: if there is no input.
        ValueError: if the folder was begun under other settings, too many archives are damaged, or nothing is left.
    """
    settings = dict(rules=dataclasses.asdict(rules), num_shards=num_shards, lists=list_digests(lists), version=1)
    shards.check_settings(output, settings)
    found = files.find([image_folder]) if image_folder else []
    todo = extract.make_units(files.find(inputs), found)
    work = functools.partial(extract.extract, rules=rules, lists=lists)
    records, tally = units.do_units(todo, output, "extract", work, options)
    logging.info("extract: %d units made, %d kept from an earlier run", tally["made"], tally["kept"])
    counts = shards.add_counts(r["counts"] for r in records)
    _check_damage(counts["archives"], max_damaged)
    if until == "extract":
        return None
    plans = _plan(records, output, rules, num_shards, options)
    plan_counts = selection.read_plan(files.read(plans[0][0]))[1]
    todo = [units.Unit(f"{k:05d}-of-{num_shards:05d}", (plan,), (k, num_shards)) for k, plan in enumerate(plans)]
    made, tally = units.do_units(todo, output, "shards", functools.partial(assemble.assemble, output=output), options)
    logging.info("shards: %d made, %d kept from an earlier run", tally["made"], tally["kept"])
    return shards.write_manifest(output, made, shards.add_counts([counts, plan_counts]), settings)


def report(counts: dict[str, dict[str, int]]) -> str:
    """Pages through the stages, images and records by what became of them, as a table."""
    left, pages = counts["pages"]["read"], counts["pages"]
    lines = ["| pages | dropped | left |", "|---|---:|---:|", f"| read | | {left} |"]
    for stage in PAGE_STAGES:
        left -= pages.get(stage, 0)
        lines.append(f"| {stage} | {pages.get(stage, 0)} | {left} |")
    if left != pages.get(KEPT, 0):
        raise AssertionError(f"{left} pages should be left, {pages.get(KEPT, 0)} are")
    for table in ("archives", "records", "images", "image marks"):
        lines += ["", f"| {table} | |", "|---|---:|", *(f"| {k} | {v} |" for k, v in counts[table].items())]
    return "\n".join(lines)


def _plan(records: list[dict[str, Any]], output: str, rules: Rules, num_shards: int, options: PipelineOptions
          ) -> list[tuple[str, str]]:
    """(path, SHA-256) of the plan of every shard; made anew unless an earlier run made them from the same indices."""
    indices = {name: made["sha256"] for r in records for name, made in r["files"].items() if name.endswith(".index")}
    inputs = hashlib.sha256(json.dumps(sorted(indices.items())).encode()).hexdigest()
    done = os.path.join(output, "work/plan/done.json")
    plans = [os.path.join(output, selection.plan_name(k, num_shards)) for k in range(num_shards)]
    if not _is_done(done, inputs, plans):
        pipeline = beam.Pipeline(options=options)
        selection.build(pipeline, [os.path.join(output, name) for name in sorted(indices)], output, rules, num_shards)
        pipeline.run().wait_until_finish()
        files.write(done, json.dumps(dict(inputs=inputs, plans=_digests(plans))).encode())
    return list(zip(plans, _digests(plans), strict=True))


def _is_done(done: str, inputs: str, plans: list[str]) -> bool:
    try:
        record = json.loads(files.read(done))
        return record == dict(inputs=inputs, plans=_digests(plans))
    except (FileNotFoundError, ValueError):
        return False


def _digests(paths: list[str]) -> list[str]:
    return [hashlib.sha256(files.read(p)).hexdigest() for p in paths]


def _check_damage(archives: dict[str, int], limit: float):
    damaged = {k: v for k, v in archives.items() if k != "whole"}
    share = sum(damaged.values()) / max(1, sum(archives.values()))
    for reason in damaged:
        logging.warning("%s", reason)
    if share > limit:
        raise ValueError(f"{sum(damaged.values())} of {sum(archives.values())} archives are cut or damaged, more than "
                         f"max_damaged={limit:g} of them; first: {next(iter(damaged))}")


def main(argv: list[str] | None = None):
    p = launch.parser("Web archives (WARC) to interleaved documents.")
    p.add_argument("--rules", default="kosmos1", choices=sorted(PRESETS), help="whose filters")
    p.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help="single fields of the rules")
    p.add_argument("--image_folder", default="", help="pattern of fetched images named by the SHA-256 of their address")
    for name in LISTS:
        p.add_argument(f"--blocked_{name}", default="", help="file of what to block, one entry a line")
    p.add_argument("--num_shards", type=int, default=16)
    p.add_argument("--max_damaged", type=float, default=MAX_DAMAGED, help="share of archives that may be damaged")
    p.add_argument("--until", default="", choices=("", "extract"), help="end after this stage")
    args, options = launch.parse(p, argv)
    try:
        changes = {k: json.loads(v) for k, _, v in (s.partition("=") for s in args.set)}
        rules = dataclasses.replace(PRESETS[args.rules], **{k: tuple(v) if isinstance(v, list) else v
                                                            for k, v in changes.items()})
    except (ValueError, TypeError) as e:
        raise SystemExit(f"--set: {e}; fields: {', '.join(f.name for f in dataclasses.fields(Rules))}") from e
    logging.set_verbosity(logging.INFO)
    manifest = run(args.input, args.output, rules, options, image_folder=args.image_folder, lists=_lists(args),
                   num_shards=args.num_shards, max_damaged=args.max_damaged, until=args.until)
    if manifest:
        print(report(manifest.counts))
        print(f"\n{sum(manifest.records.values())} documents in {len(manifest.records)} shards in {args.output}")


def _lists(args: argparse.Namespace) -> ListPaths:
    return tuple((name, path) for name in LISTS if (path := getattr(args, f"blocked_{name}")))
