"""The picture of a plan: where the memory goes, and what bounds the step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmjax.plan.report import Report

GROUPS = {"trainable": "#2563eb", "frozen": "#0891b2", "optimizer": "#7c3aed", "gradients": "#d97706",
          "batch": "#6b7280", "rest": "#cbd5e1"}
RED = "#b91c1c"


def draw(reports: Sequence[Report], path: str | Path) -> None:
    """Draws stacked bars of memory beside a roofline, both for every plan.

    Args:
        reports: at least one, all of one machine.
        path: of the PNG.
    """
    figure = Figure(figsize=(5.5 + 1.2 * len(reports) + 5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2 + len(reports), 5))
    _bars(left, reports)
    _roofline(right, reports)
    figure.suptitle(f"{reports[0].name} on {reports[0].topology}", fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=120)


def _bars(axes, reports: Sequence[Report]) -> None:
    labels = ["\n".join(f"{axis} {size}" for axis, size in r.mesh.items()) + f"\nremat {r.remat}" for r in reports]
    bottom = np.zeros(len(reports))
    for group, color in GROUPS.items():
        heights = np.array([r.memory[group] for r in reports]) / 2**30
        axes.bar(labels, heights, 0.6, bottom=bottom, color=color, label=group)
        bottom += heights
    available = reports[0].memory["available"] / 2**30
    axes.axhline(available, color=RED, linewidth=1.5)
    axes.annotate(f"memory {available:.1f} GiB", (0, 1), (2, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", color=RED, annotation_clip=False).xy = (0, available)
    axes.set_ylabel("GiB a device")
    axes.margins(x=0.3)
    axes.legend(frameon=False, reverse=True, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)


def _roofline(axes, reports: Sequence[Report]) -> None:
    """Attainable operations a second over operations a byte of memory and of network."""
    peak, bandwidth = reports[0].peak, reports[0].bandwidth
    intensity = np.logspace(0, 5, 200)
    axes.loglog(intensity, np.minimum(peak, intensity * bandwidth) / 1e12, color="black", linewidth=1.5,
                label="memory and compute of the chip")
    for r in reports:
        if not r.traffic:
            continue
        mesh = " x ".join(f"{axis} {size}" for axis, size in r.mesh.items())
        work = r.executed_flops / r.devices
        speeds = [work / seconds / 1e12 for seconds in (sum(r.seconds.values()), max(r.seconds.values()))]
        line, = axes.plot([work / r.traffic] * 2, speeds, marker="o", markersize=5, linewidth=2,
                          label=f"{mesh}: nothing to all overlaps")
        if r.seconds["network"]:
            limit = work / r.seconds["network"] / 1e12
            axes.axhline(limit, color=line.get_color(), linestyle=":", linewidth=1)
            axes.annotate("network", (1.1, limit), color=line.get_color(), fontsize=8, va="bottom")
    axes.set_xlabel("executed FLOPs a byte of memory traffic")
    axes.set_ylabel("TFLOP/s a device")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
