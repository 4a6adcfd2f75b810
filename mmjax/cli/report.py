"""The evaluation of a stage, and what a person sees of it: the table and the pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.evals import EvalConfig, Results, Sample, by_shots, run_evals, table, write_json
from mmjax.evals.prompts import Writer
from mmjax.evals.report import SWAPPED
from mmjax.models.interface import Model, Params
from mmjax.training import plots
from mmjax.training.config import StageConfig

MAX_SAMPLES = 12


def evaluate(config: StageConfig, model: Model, params: Params, writer: Writer, progress: bool) -> Results:
    """Runs the evals of a stage; see `run_evals` for what it raises."""
    return run_evals(config.evals, model, params, writer.tokenizer, writer.template, writer.image, writer.frames,
                     progress)


def write(results: Results, configs: tuple[EvalConfig, ...], folder: Path, **about: Any) -> None:
    """Writes `eval.json`, `samples.png`, and a `shots.png` for each data set that has accuracies.

    Args:
        results: of `run_evals`.
        configs: what was evaluated.
        folder: where to; made if absent.
        **about: further facts for `eval.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "eval.json", configs, results.metrics, **about)
    if samples := choose_samples(results, configs):
        plots.plot_samples(samples, folder / "samples.png")
    curves, control = (by_shots(results.metrics, f"accuracy{end}") for end in ("", SWAPPED))
    for number, (data, names) in enumerate(by_data(configs, curves).items()):
        plots.plot_shots({name: curves[name] for name in names}, folder / picture_name(number, data),
                         chance=results.metrics[f"{names[0]}/chance"], control=control.get(names[0]),
                         title=f"{Path(data).name}, held out")


def by_data(configs: tuple[EvalConfig, ...], curves: Mapping[str, Any]) -> dict[str, list[str]]:
    """Data of the tasks that have a curve -> their names: they have one chance, and belong in one picture."""
    groups: dict[str, list[str]] = {}
    for config in configs:
        if config.name in curves:
            groups.setdefault(config.data, []).append(config.name)
    return groups


def picture_name(number: int, data: str) -> str:
    """`shots.png` for the first data set, `shots_<data>.png` for the others."""
    return "shots.png" if number == 0 else f"shots_{Path(data).stem}.png"


def choose_samples(results: Results, configs: tuple[EvalConfig, ...]) -> list[Sample]:
    """Some samples of every task, at its smallest number of shots but 0 if it has one."""
    share, chosen = max(MAX_SAMPLES // max(len(configs), 1), 1), []
    for config in configs:
        shots = min((k for k in config.shots if k), default=0)
        samples = results.samples[f"{config.name}/{shots}"]
        chosen += samples[::max(len(samples) // share, 1)][:share]
    return chosen


def summary(metrics: Mapping[str, float], folder: Path) -> str:
    """The table, and where the pictures lie."""
    pictures = [str(path) for path in sorted(folder.glob("*.png"))]
    return "\n".join([table(metrics), *([f"pictures: {', '.join(pictures)}"] if pictures else [])])
