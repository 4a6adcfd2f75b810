"""`mmjax data`: look at data, count it, verify it, time it."""

import argparse
import ast
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.cli import arguments, stages
from mmjax.data import preprocess
from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.inspect import bench, peek, stats, verify
from mmjax.data.loader import Loader
from mmjax.data.prepare import prepare
from mmjax.training.structure import ConfigError, choices

ACTIONS = {
    "peek": "draw packed rows: images in place, text, a colour for each document, what is learned",
    "stats": "count: how full rows are, how long documents are, how many images they have, what is left out",
    "verify": "read every shard: whole, as many documents as expected, images in order, digests as written",
    "bench": "time: images and tokens per second, and what the time of a row goes into",
}
_SPECIALS = ("<pad>", "<s>", "</s>")


def run(argv: Sequence[str]) -> int:
    """Does one of ACTIONS; 1 if `verify` finds something to mend."""
    args = arguments.parse(_parser(), argv)
    return {"peek": _peek, "stats": _stats, "verify": _verify, "bench": _bench}[args.action](args)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("data", "; ".join(f"{name}: {what}" for name, what in ACTIONS.items()), config=True)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--stage", help="this stage of the config only")
    parser.add_argument("--set", help="this data set only")
    parser.add_argument("--workdir", type=Path, help="take the config of this run")
    source = parser.add_argument_group("a source without a config")
    source.add_argument("--path", help="its file or folder")
    source.add_argument("--format", default="array_record", help="of the source")
    source.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the format")
    source.add_argument("--template", default="flamingo", help="how documents become tokens")
    source.add_argument("--seq-len", type=int, default=2048, help="tokens of a row")
    source.add_argument("--images", type=int, default=16, help="images of a row")
    source.add_argument("--image", default="clip-224", help="preset of the pixels")
    source.add_argument("--tokenizer", default="", help="tokenizer.json or its folder; bytes without one")
    parser.add_argument("--rows", type=int, help="of each data set, to draw (2), count (200) or time (30)")
    parser.add_argument("--out", type=Path, help="peek: the picture (peek.png); stats: a JSON file")
    parser.add_argument("--decode", action="store_true", help="verify: decode images instead of reading their headers")
    parser.add_argument("--seconds", type=float, default=10.0, help="bench: time of the whole loader")
    parser.add_argument("--workers", type=int, help="bench: processes that decode, instead of the config's")
    parser.add_argument("--threads", type=int, help="bench: threads, instead of the config's")
    return parser


def _peek(args: argparse.Namespace) -> int:
    rows, found = args.rows or 2, list(_loaders(args))
    out = args.out or Path("peek.png")
    for name, config in found:
        with Loader(_change(config, batch_size=lambda c: rows)) as loader:
            batches = next(loader)
        marks = {n: [c.make_template().tokens.get("image", "")] for n, c in config.sets.items()}
        path = out.with_stem(f"{out.stem}_{name}") if len(found) > 1 else out
        path.parent.mkdir(parents=True, exist_ok=True)
        peek.draw_sheet(batches, config.make_tokenizer(), rows, marks).save(path)
        print(f"saved {path}")
    return 0


def _stats(args: argparse.Namespace) -> int:
    rows, values = args.rows or 200, {}
    for name, config in _loaders(args):
        size = min(rows, 10)
        config = _change(config, batch_size=lambda c: size, image=lambda c: _tiny(c.image))     # noqa: B023
        with Loader(config) as loader:
            found = stats.collect(itertools.islice(loader, -(-rows // size)))
            counters = loader.counters
        for set_name, of_set in found.items():
            print(f"{name}{':' * bool(name)}{set_name}\n{of_set.report()}\n{stats.sources_table(counters[set_name])}\n")
        values[name] = {n: s.values() | dict(sources=counters[n]) for n, s in found.items()}
    if args.out:
        args.out.write_text(json.dumps(values if len(values) > 1 else next(iter(values.values())), indent=1) + "\n")
        print(f"saved {args.out}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    seen, bad, total, documents = set(), 0, 0, 0
    for _, config in _loaders(args):
        for data in config.sets.values():
            for source in data.sources:
                key = source.format, source.path, json.dumps(dict(source.options), sort_keys=True)
                if key in seen:
                    continue
                seen.add(key)
                for report in verify.verify(source, data.image, args.decode):
                    print(report.line(), flush=True)
                    bad, total, documents = bad + (not report.good), total + 1, documents + report.documents
    print(f"{total} files, {bad} of them bad; {documents} documents can be used")
    return 1 if bad else 0


def _bench(args: argparse.Namespace) -> int:
    for name, config in _loaders(args):
        config = dataclasses.replace(config, **{f: getattr(args, f) for f in ("workers", "threads")
                                                if getattr(args, f) is not None})
        config = _change(config, batch_size=lambda c: min(c.batch_size, 16))
        print(f"{name}{':' * bool(name)} {config.workers} workers, {config.threads} threads, {args.seconds:g} s: "
              f"{bench.throughput(config, args.seconds).line()}")
        for set_name, costs in bench.costs(config, args.rows or 30).items():
            print(f"{set_name}, one thread: {costs.line()}")
    return 0


def _loaders(args: argparse.Namespace) -> Iterator[tuple[str, LoaderConfig]]:
    """What each stage of the config reads, or the source of the command line; by one stream of one process."""
    if args.path and (args.config or args.workdir):
        raise ConfigError("--path names a source and --config or --workdir a run; give one of them")
    if args.path:
        yield "", _of_source(args)
        return
    for name, config in stages.select(stages.from_args(args), args.stage):
        data = config.data
        if args.set is not None and args.set not in data.sets:
            raise ConfigError(f"{f'stage {name!r}' if name else 'the config'} has no data set {args.set!r}; "
                              f"{choices(args.set, data.sets)}")
        prepare(data)
        sets = {n: c for n, c in data.sets.items() if args.set in (None, n)}
        yield name, dataclasses.replace(data, sets=sets, streams=0)


def _of_source(args: argparse.Namespace) -> LoaderConfig:
    source = Source(args.path, format=args.format, options=dict(map(_option, args.option)))
    images = 0 if args.template == "language" else args.images
    data = DataSetConfig((source,), 1, args.seq_len, images_per_row=images, image=preprocess.image_spec(args.image),
                         template=args.template, too_long="truncate")
    specials = tuple(dict.fromkeys((*_SPECIALS, *filter(None, data.make_template().tokens.values()))))
    return LoaderConfig({args.format: data}, tokenizer=args.tokenizer, specials=specials)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--option {text} must be NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _change(config: LoaderConfig, **fields: Callable[[DataSetConfig], Any]) -> LoaderConfig:
    """The config with fields of its data sets replaced by what the functions make of each."""
    sets = {name: dataclasses.replace(c, **{field: make(c) for field, make in fields.items()})
            for name, c in config.sets.items()}
    return dataclasses.replace(config, sets=sets)


def _tiny(spec):
    """Images that are counted and not looked at: the same ones are refused, but little is spent on the others."""
    return dataclasses.replace(spec, size=8, resize_to=0, resize="nearest", draft=1.0)
