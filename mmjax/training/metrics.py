"""Scalars of a run: `metrics.jsonl`, TensorBoard events, the line a person watches, and the clock behind the rates."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
import tqdm

from mmjax.batch import Batch

FILE = "metrics.jsonl"


def read_rows(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, each with its `step`; a last line that a kill cut short is left out."""
    path = Path(run_dir) / FILE
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


class MetricWriter:
    """Appends rows of scalars to `metrics.jsonl` and to TensorBoard events in the run directory.

    Args:
        run_dir: the run directory, which exists.
        step: where the run continues; rows of later steps, written before an interruption, are dropped.
    """

    def __init__(self, run_dir: str | Path, step: int):
        self._path = Path(run_dir) / FILE
        kept = [row for row in read_rows(run_dir) if row["step"] <= step]
        draft = self._path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(draft, self._path)
        self._file = self._path.open("a")
        self._events = tensorboardX.SummaryWriter(str(run_dir), purge_step=step + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._events.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row; a value that is not finite becomes null in the JSON."""
        row = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps({"step": step} | finite) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()


class Clock:
    """Rates over the steps since the last call of `rates`: tokens, images, operations, and the share without data.

    Args:
        processes: that read data; all of them see about as much of it as this one.
        operations: those that a step with these batches needs; None counts none.
        peak: operations a second of all devices together, or None if nobody knows; then there is no utilisation.
    """

    def __init__(self, processes: int = 1, operations: Callable[[Mapping[str, Batch]], float] | None = None,
                 peak: float | None = None):
        self._processes, self._operations, self._peak = processes, operations, peak
        self._all_flops = self._all_seconds = 0.0
        self.reset()

    def reset(self) -> None:
        """Starts a new window."""
        self._start, self._waited, self._steps, self._tokens, self._images = time.perf_counter(), 0.0, 0, 0, 0
        self._flops = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside (evaluation, a checkpoint) out of the window."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def count(self, batches: Mapping[str, Batch]) -> None:
        """Counts one step of these batches; padding is no token, an unused slot no image."""
        self._steps += 1
        self._tokens += self._processes * sum(int(np.count_nonzero(b.segment_ids)) for b in batches.values())
        self._images += self._processes * sum(int(np.count_nonzero(b.image_segment_ids)) for b in batches.values())
        if self._operations is not None:
            self._flops += self._processes * self._operations(batches)

    def rates(self) -> dict[str, float]:
        """Starts a new window, after the rates of this one.

        They are `seconds_per_step`, `tokens_per_second`, `images_per_second`, `data_wait` (0 to 1), and as far as they
        are known `model_flops_per_second` and `mfu` (0 to 1).
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rates = {"seconds_per_step": seconds / max(self._steps, 1), "tokens_per_second": self._tokens / seconds,
                 "images_per_second": self._images / seconds, "data_wait": min(self._waited / seconds, 1.0)}
        if self._operations is not None:
            rates["model_flops_per_second"] = self._flops / seconds
            if self._peak:
                rates["mfu"] = self._flops / seconds / self._peak
        self._all_flops, self._all_seconds = self._all_flops + self._flops, self._all_seconds + seconds
        self.reset()
        return rates

    def text(self) -> str:
        """Operations a second and utilisation over all windows, for a person; empty without any."""
        if not self._all_flops:
            return ""
        rate = self._all_flops / self._all_seconds
        utilisation = f", MFU {rate / self._peak:.1%}" if self._peak else ""
        return f"; {short(rate)}FLOP/s of the model{utilisation}"


class Progress:
    """What a person watches on standard error: a bar on a terminal, otherwise one line per row; or nothing.

    Args:
        name: what is trained.
        step: where the run starts.
        total: where it ends.
        quiet: prints nothing; for all processes but the first.
    """

    def __init__(self, name: str, step: int, total: int, quiet: bool = False):
        self._name, self._total, self._quiet = name, total, quiet
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            self._bar = tqdm.tqdm(initial=step, total=total, desc=name, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def row(self, step: int, row: Mapping[str, float]) -> None:
        """Shows a row of metrics."""
        if self._bar is not None:
            self._bar.set_postfix_str(summary(row))
        else:
            eta = duration((self._total - step) * row["seconds_per_step"])
            self.say(f"{self._name}  step {step:>{len(str(self._total))}}/{self._total}  {summary(row)}  ETA {eta}")

    def say(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if not self._quiet:
            tqdm.tqdm.write(text, file=sys.stderr)


def summary(row: Mapping[str, float]) -> str:
    """Loss, learning rate, throughput and data wait of a row as one text."""
    images = f"  {short(row['images_per_second'])} images/s" if row["images_per_second"] else ""
    utilisation = f"MFU {row['mfu']:.0%}  " if "mfu" in row else ""
    return (f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {short(row['tokens_per_second'])} tokens/s{images}  "
            f"{utilisation}data wait {row['data_wait']:.0%}")


def short(number: float) -> str:
    """Three digits with a unit: 1234 -> "1.23k"."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}P"


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
