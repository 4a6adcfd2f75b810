"""What comes out: metrics as a table, as JSON and as curves to plot, and samples to look at."""

import collections
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.evals.config import EvalConfig

SWAPPED = "_swapped"


class Sample(NamedTuple):
    """One thing the model said.

    Attributes:
        images: uint8[H, W, 3] each, the middle frame of a video; the last is asked about, those before are shots.
        prompt: all the text before the answer, a line for each example.
        truth: the right answer.
        answer: what the model said.
        correct: whether that counts as right.
    """

    images: Sequence[np.ndarray]
    prompt: str
    truth: str
    answer: str
    correct: bool


def by_shots(metrics: Mapping[str, float], metric: str = "accuracy") -> dict[str, dict[int, float]]:
    """{task: {shots: value}} of one metric, from the flat "task/metric/shots" of `run_evals`."""
    curves: dict[str, dict[int, float]] = collections.defaultdict(dict)
    for key, value in metrics.items():
        match key.split("/"):
            case [task, name, shots] if name == metric:
                curves[task][int(shots)] = value
    return dict(curves)


def table(metrics: Mapping[str, float]) -> str:
    """A line for each task and metric, a column for each number of shots; shares are in percent."""
    names = list(dict.fromkeys(tuple(key.split("/")[:2]) for key in metrics if key.count("/") == 2))
    columns = sorted({int(key.rsplit("/", 1)[1]) for key in metrics if key.count("/") == 2})
    rows = [["held-out task", *(f"{k} shots" for k in columns), "chance"]]
    for task, metric in names:
        label = f"{task} {metric.removesuffix(SWAPPED).replace('_', ' ')}"
        label += ", images swapped" if metric.endswith(SWAPPED) else ""
        chance = metrics.get(f"{task}/chance") if metric.startswith("accuracy") else None
        values = [metrics.get(f"{task}/{metric}/{k}") for k in columns]
        rows.append([label, *(_number(metric, v) for v in values), _number(metric, chance)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if metric.startswith("cider") else f"{value:.1%}"


def write_json(path: str | os.PathLike, configs: Sequence[EvalConfig], metrics: Mapping[str, float],
               **about: Any) -> None:
    """Writes metrics beside all that they depend on, because scores under other prompts or seeds do not compare.

    Args:
        path: of the file, which appears complete or not at all.
        configs: what was evaluated.
        metrics: what `run_evals` returned.
        **about: further facts that JSON can hold: checkpoint, step, template, version.
    """
    path = Path(path)
    value = dict(metrics=dict(metrics), evals=[dataclasses.asdict(c) for c in configs], **about)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)
