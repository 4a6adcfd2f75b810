"""Resident memory of the loader over half an hour of streaming, with its workers.

Run:     nice python experiments/benchmarks/data_memory.py [--minutes 30] [--out FILE]
Expect:  `change` of a few per cent at most; see results/data_memory.json.

Pages of the throughput benchmark, by two workers, each batch dropped when the next one comes, and a position saved
every tenth. `change` is that of the mean of the last fifth against that of the second fifth; the first warms up. Memory
that a worker shares with the loader counts in both.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.loader import Loader

sys.path.insert(0, str(Path(__file__).parent))
from data_loader import SCALED, write_data  # noqa: E402  scripts of one folder

MEGABYTE = 1 << 20


def resident(pid: int) -> float:
    """MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def children() -> list[int]:
    return [int(p) for t in Path("/proc/self/task").iterdir() for p in (t / "children").read_text().split()]


def stream(folder: Path, minutes: float, samples: int) -> tuple[list[dict[str, float]], dict]:
    """Memory at equal times, and the counters at the end."""
    pages = DataSetConfig((Source(str(folder / "pages.array_record")),), 6, 2048, images_per_row=16, image=SCALED,
                          template="flamingo")
    rows, begin, batches = [], time.monotonic(), 0
    with Loader(LoaderConfig(dict(pages=pages), workers=2)) as loader:
        while len(rows) < samples:
            next(loader)
            batches += 1
            if batches % 10 == 0:
                loader.get_state()
            seconds = time.monotonic() - begin
            if seconds > (len(rows) + 1) * minutes * 60 / samples:
                workers = children()
                assert len(workers) == 2
                rows.append(dict(seconds=round(seconds), batches=batches, loader=round(resident(os.getpid()), 1),
                                 workers=round(sum(map(resident, workers)), 1)))
                print(rows[-1], flush=True)
        return rows, loader.counters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        rows, counters = stream(Path(folder), args.minutes, args.samples)
    total = np.array([row["loader"] + row["workers"] for row in rows])
    fifth = max(1, len(total) // 5)
    change = float(total[-fifth:].mean() / total[fifth:2 * fifth].mean() - 1)
    print(f"change {change:+.2%} over {args.minutes:g} minutes; {counters}")
    if args.out:
        args.out.write_text(json.dumps(dict(minutes=args.minutes, change=change, counters=counters, samples=rows),
                                       indent=1) + "\n")


if __name__ == "__main__":
    main()
