"""The resume matrix: stopped anywhere, continued with any number of workers and hosts, no record lost or read twice.

Run:     python experiments/benchmarks/data_resume.py [--batches 250] [--every 7] [--out .../results/data_resume.json]
Expect:  lost 0, repeated 0, other order 0 in all cells; see results/data_resume.json.

A straight run with every number of workers and hosts saves its position at every stop. Positions of all workers must
be equal to the byte. Then every number of hosts with every number of workers goes to every position that any number of
hosts saved, and its batches up to the next stop are compared with those of the straight run: bit by bit for the
order, and record by record for what is lost or read twice. The data are two sets, one of pages with images of which
some are damaged, in mixtures, with random windows; in four streams.
"""

import argparse
import contextlib
import hashlib
import io
import json
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image as pil

from mmjax.batch import Batch
from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.data.images import ImageSpec
from mmjax.data.loader import Loader

WORKERS, HOSTS, STREAMS = (0, 1, 2, 3), (1, 2, 4), 4
_MARK = b"#"                            # stands before and behind the name of a record in its text


def write_data(folder: Path) -> LoaderConfig:
    """Small sources whose every text names its record."""
    rng = np.random.default_rng(0)
    for source, count in (("web", 90), ("pairs", 50), ("books", 70), ("chat", 31)):
        write_documents(folder / f"{source}.array_record", (document(rng, f"{source}{i}", source in ("web", "pairs"))
                                                            for i in range(count)))
    pages = DataSetConfig(sources(folder, web=2, pairs=1), 4, 96, images_per_row=4, image=ImageSpec(size=8),
                          template="flamingo", template_options=dict(p_next=0.5), too_long="window")
    text = DataSetConfig(sources(folder, books=1, chat=3), 4, 64)
    return LoaderConfig(dict(pages=pages, text=text), streams=STREAMS, max_skipped=0.2)


def sources(folder: Path, **weights: float) -> tuple[Source, ...]:
    return tuple(Source(f"{folder}/{name}.array_record", weight) for name, weight in weights.items())


def document(rng: np.random.Generator, name: str, has_images: bool) -> Document:
    """One text that names the record, and images; one in twenty is damaged behind its header."""
    text = Text(f"#{name}#" + "x" * int(rng.integers(0, 50)))
    if not has_images:
        return Document((text,), name)
    out = io.BytesIO()
    pil.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(out, "JPEG")
    data = out.getvalue()[:300 if rng.random() < 0.05 else None]
    return Document((Image(data),) * int(rng.integers(1, 3)) + (text,), name)


def digest(batches: dict[str, Batch]) -> str:
    """A name for every bit of the batches of a step."""
    value = hashlib.blake2b(digest_size=16)
    for batch in batches.values():
        for array in batch:
            value.update(np.ascontiguousarray(array).tobytes())
    return value.hexdigest()


def records(batches: dict[str, Batch]) -> Counter[str]:
    """The records in the batches of a step, by the names in their texts."""
    found: Counter[str] = Counter()
    for batch in batches.values():
        for row, segments in zip(batch.tokens, batch.segment_ids, strict=True):
            for s in range(1, segments.max() + 1):
                tokens = row[segments == s]
                found[bytes(tokens[tokens < 256].astype(np.uint8)).split(_MARK)[1].decode()] += 1
    return found


class Run:
    """Loaders of all hosts, with some workers each."""

    def __init__(self, config: LoaderConfig, hosts: int, workers: int):
        self.loaders = [Loader(replace(config, workers=workers), host, hosts) for host in range(hosts)]

    def __next__(self) -> dict[str, Batch]:
        parts = [next(loader) for loader in self.loaders]
        return {name: Batch(*map(np.concatenate, zip(*(p[name] for p in parts), strict=True))) for name in parts[0]}

    def states(self) -> tuple[bytes, ...]:
        return tuple(loader.get_state() for loader in self.loaders)

    def go_to(self, states: tuple[bytes, ...]) -> None:
        for loader in self.loaders:
            loader.set_state(*states)

    def close(self) -> None:
        for loader in self.loaders:
            loader.close()


def straight(config: LoaderConfig, hosts: int, workers: int, batches: int, every: int
             ) -> tuple[dict[int, tuple[bytes, ...]], list[str], list[Counter[str]]]:
    """Positions at the stops; digest and records of every batch."""
    states, digests, found = {}, [], []
    with contextlib.closing(Run(config, hosts, workers)) as run:
        for step in range(batches):
            if step % every == 0:
                states[step] = run.states()
            step_batches = next(run)
            digests.append(digest(step_batches))
            found.append(records(step_batches))
    return states, digests, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=250)
    parser.add_argument("--every", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = write_data(Path(folder))
        saved, (digests, found) = {}, (None, None)
        for hosts in HOSTS:
            for workers in WORKERS:
                states, d, f = straight(config, hosts, workers, args.batches, args.every)
                assert digests in (None, d), f"another order with {hosts} hosts and {workers} workers"
                assert saved.setdefault(hosts, states) == states, f"other positions with {workers} workers"
                digests, found = d, f
        print(f"straight runs: {len(HOSTS)} x {len(WORKERS)}, all batches and positions equal; "
              f"{sum(map(Counter.total, found))} records in {args.batches} steps")
        cells = matrix(config, saved, digests, found, args.batches, args.every)
    print(f"{len(cells) * len(WORKERS)} cells of {len(saved[1])} stops, {time.monotonic() - begin:.0f} s: "
          f"lost {sum(c['lost'] for c in cells)}, repeated {sum(c['repeated'] for c in cells)}, "
          f"other order {sum(c['other_order'] for c in cells)}")
    if args.out:
        args.out.write_text(json.dumps(dict(batches=args.batches, every=args.every, workers_before=WORKERS,
                                            cells=cells), indent=1) + "\n")


def matrix(config: LoaderConfig, saved: dict[int, dict[int, tuple[bytes, ...]]], digests: list[str],
           found: list[Counter[str]], batches: int, every: int) -> list[dict[str, int]]:
    """What every continuation got otherwise than the straight run; a cell is for all numbers of workers before."""
    cells = []
    for hosts in HOSTS:
        for workers in WORKERS:
            with contextlib.closing(Run(config, hosts, workers)) as run:
                for before, states in saved.items():
                    lost = repeated = other = 0
                    for stop, state in states.items():
                        run.go_to(state)
                        want, got = Counter(), Counter()
                        for step in range(stop, min(stop + every, batches)):
                            step_batches = next(run)
                            other += digest(step_batches) != digests[step]
                            got += records(step_batches)
                            want += found[step]
                        lost, repeated = lost + (want - got).total(), repeated + (got - want).total()
                    cells.append(dict(hosts_before=before, hosts_after=hosts, workers_after=workers,
                                      stops=len(states), lost=lost, repeated=repeated, other_order=other))
                    print("  ".join(f"{k} {v}" for k, v in cells[-1].items()), flush=True)
    return cells


if __name__ == "__main__":
    main()
