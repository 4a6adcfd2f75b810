"""Pictures of a run: its losses, what the model says about held-out images, and accuracy by number of shots.

Everything comes in as numbers, text and NumPy images; figures are drawn without a display.
"""

import dataclasses
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#2563eb", "#d97706", "#15803d", "#b91c1c", "#6b7280"
COLORS = (BLUE, ORANGE, GREEN, "#7c3aed", "#0891b2", "#be185d")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One thing the model said.

    Attributes:
        images: uint8[H, W, 3] each; the last is asked about, those before are shots.
        prompt: the text before the answer.
        truth: the right answer.
        answer: what the model said.
        correct: whether that counts as right.
    """

    images: Sequence[np.ndarray]
    prompt: str
    truth: str
    answer: str
    correct: bool


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the values up to `window // 2` places away on both sides; float64[N]."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    places, half = np.arange(len(values)), window // 2
    starts, ends = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[ends] - sums[starts]) / (ends - starts)


def plot_loss(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draws every loss over the steps, raw in pale and smoothed in full colour, and the learning rate below.

    Args:
        rows: rows of `metrics.jsonl`; only those with a `loss` count, and null values are left out.
        path: of the PNG.
    """
    rows = [row for row in rows if "loss" in row]
    names = sorted({name for row in rows for name in row if name.startswith("loss/")})
    if len(names) == 1:                 # then it is the same curve as the sum
        names = []
    figure = Figure(figsize=(8, 5))     # drawn at every checkpoint, and fixed margins take half the time
    figure.subplots_adjust(left=0.1, right=0.98, top=0.97, bottom=0.1, hspace=0.17)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for color, name in zip(COLORS, ["loss", *names], strict=False):
        points = np.array([(row["step"], row[name]) for row in rows if row.get(name) is not None], np.float64)
        steps, values = points.reshape(-1, 2).T
        label = name.removeprefix("loss/") if name != "loss" else "all, weighted" if names else "loss"
        top.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        top.plot(steps, smooth(values, len(values) // 20), color=color, linewidth=1.8, label=label)
    bottom.plot([row["step"] for row in rows], [row["lr"] for row in rows], color=GREY, linewidth=1.5)
    top.set_ylabel("loss (nats per token)")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.set_ylim(bottom=0)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    figure.align_ylabels()
    top.legend(frameon=False)
    for axes in (top, bottom):
        _plain(axes)
    _save(figure, path)


def plot_samples(samples: Sequence[Sample], path: str | Path, title: str = "", columns: int = 4) -> None:
    """Draws a grid of samples: images, prompt, truth and answer, green if right and red if not.

    Args:
        samples: at least one.
        path: of the PNG.
        title: above the grid.
        columns: samples per row of the grid.
    """
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    strip = 0.8 if any(len(sample.images) > 1 for sample in samples) else 0.0
    figure = Figure(figsize=(2.7 * columns, (3.4 + strip) * rows + 0.4 * bool(title)), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    for index, cell in enumerate(figure.subfigures(rows, columns, squeeze=False).flat):
        if index < len(samples):
            _draw_sample(cell, samples[index], strip)
    _save(figure, path)


def _draw_sample(cell: Any, sample: Sample, strip: float) -> None:
    """One cell: a strip of `strip` inches for the shots, the image that is asked about, the text below."""
    color = GREEN if sample.correct else RED
    grid = cell.add_gridspec(3, 1, height_ratios=(strip + 1e-3, 2.3, 1.1), hspace=0.02)
    *shots, asked = sample.images or [np.full((1, 1, 3), 255, np.uint8)]
    row = grid[0].subgridspec(1, max(len(shots), 4), wspace=0.05)
    for position, image in enumerate(shots):
        _draw_image(cell.add_subplot(row[position]), image, "#d1d5db", 1)
    _draw_image(cell.add_subplot(grid[1]), asked, color, 2.5)
    text = cell.add_subplot(grid[2])
    text.axis("off")
    text.set(xlim=(0, 1), ylim=(0, 1))
    y = 1.0
    for content, shade, weight in ((_wrapped(sample.prompt, 2, keep_end=True), GREY, "normal"),
                                   (_wrapped(f"truth: {sample.truth}", 2), "black", "normal"),
                                   (_wrapped(f"model: {sample.answer}", 2), color, "bold")):
        text.text(0, y, content, color=shade, fontsize=8.5, fontweight=weight, va="top", parse_math=False)
        y -= 0.15 * (content.count("\n") + 1) + 0.03


def _draw_image(axes: Any, image: np.ndarray, color: str, width: float) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(width)


def _wrapped(text: str, lines: int, keep_end: bool = False, width: int = 34) -> str:
    """Wraps text to `lines` lines; what does not fit is replaced by an ellipsis at the end, or at the beginning."""
    parts = textwrap.wrap(" ".join(text.split()), width) or [""]
    if len(parts) <= lines:
        return "\n".join(parts)
    if keep_end:
        return "\n".join(["\u2026" + parts[-lines], *parts[len(parts) - lines + 1:]])
    return "\n".join([*parts[:lines - 1], parts[lines - 1] + "\u2026"])


def plot_shots(curves: Mapping[str, Mapping[int, float]], path: str | Path, chance: float | None = None,
               control: Mapping[int, float] | None = None, title: str = "") -> None:
    """Draws accuracy over the number of shots.

    Args:
        curves: name of a task or selection -> {shots: accuracy from 0 to 1}.
        path: of the PNG.
        chance: accuracy of guessing.
        control: {shots: accuracy} when every image is swapped for one of another document.
        title: above the picture.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    all_shots = sorted({shots for curve in [*curves.values(), control or {}] for shots in curve})
    place = {shots: index for index, shots in enumerate(all_shots)}     # 0, 2, 4, 8 equally far apart
    for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
        _draw_curve(axes, place, curve, color, "-", name)
        for shots, value in curve.items():      # of curves that lie close, only the outer ones have room for a number
            others = [other[shots] for other in curves.values() if shots in other]
            if value in (min(others), max(others)):
                _write_number(axes, place[shots], value, color, above=value == max(others))
    if control:
        _draw_curve(axes, place, control, GREY, "--", "images swapped")
        for shots, value in control.items():
            _write_number(axes, place[shots], value, GREY, above=True)
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=":", label=f"chance {chance:.0%}", zorder=0)
    axes.set_xticks(range(len(all_shots)), map(str, all_shots))
    axes.set_xlim(-0.3, len(all_shots) - 0.7)
    axes.set_ylim(0, 1.05)
    axes.set_yticks(np.arange(0, 1.01, 0.2), [f"{v:.0%}" for v in np.arange(0, 1.01, 0.2)])
    axes.set_xlabel("shots")
    axes.set_ylabel("accuracy")
    axes.set_title(title, fontweight="bold")
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    _save(figure, path)


def _draw_curve(axes: Any, place: Mapping[int, int], curve: Mapping[int, float], color: str, style: str, name: str):
    shots = sorted(curve)
    axes.plot([place[s] for s in shots], [curve[s] for s in shots], style, color=color, marker="o", linewidth=2,
              label=name)


def _write_number(axes: Any, x: int, value: float, color: str, above: bool) -> None:
    axes.annotate(f"{value:.0%}", (x, value), (0, 7 if above else -15), textcoords="offset points", ha="center",
                  color=color, fontsize=9)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _save(figure: Figure, path: str | Path) -> None:
    """Writes the PNG in one move, so that a reader never sees half of it."""
    FigureCanvasAgg(figure)
    draft = Path(path).with_suffix(".tmp")
    figure.savefig(draft, format="png", dpi=130)
    os.replace(draft, path)
