"""The training loop: one function that starts, continues and ends a stage, and leaves its directory whole."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mmjax.batch import Batch
from mmjax.checkpoint import manager
from mmjax.checkpoint.convert import pretrained
from mmjax.checkpoint.convert.adapter import is_adapter_folder, read_adapter
from mmjax.checkpoint.manager import CheckpointManager
from mmjax.checkpoint.paths import flatten, nest
from mmjax.layers.low_rank import is_adapter
from mmjax.models.interface import Model, Params
from mmjax.parallel import RULES, make_mesh, num_row_parts, put_rows, share_of_rows
from mmjax.parallel.chips import chip_of
from mmjax.parts.flops import Work
from mmjax.training import config as config_lib
from mmjax.training import optimizer, plots
from mmjax.training import step as step_lib
from mmjax.training.config import StageConfig
from mmjax.training.goodput import Goodput, Profile
from mmjax.training.metrics import Clock, MetricWriter, Progress, duration, read_rows
from mmjax.training.step import Plan, TrainState
from mmjax.training.structure import ConfigError, require, to_dict

Evaluate = Callable[[Params, int], Mapping[str, float]]
EVAL = "eval/"          # prefix of what an evaluation reports, in rows of metrics


class TrainingError(RuntimeError):
    """Training cannot go on; the message has the step, what was seen and what to do."""


class Loader(Protocol):
    """Data of this process: an iterator of {set name: Batch of NumPy arrays} with a position to save, and scalars
    of what was read so far."""

    def __next__(self) -> dict[str, Batch]: ...
    def metrics(self) -> dict[str, float]: ...
    def get_state(self) -> bytes: ...
    def set_state(self, *states: bytes) -> None: ...


class Result(NamedTuple):
    """The end of a stage: its last step, all parameters, and what the last evaluation reported."""

    step: int
    params: Params
    evaluation: dict[str, float]


def run(config: StageConfig, model: Model, loader: Loader, workdir: str | Path, *,
        set_weights: Mapping[str, float] | None = None, evaluate: Evaluate | None = None,
        mesh: Mesh | None = None) -> Result:
    """Trains a stage to its last step, continuing from the latest checkpoint in `workdir` if there is one.

    Continuing is exact: next batch, losses and parameters are bit-equal to those of a run never interrupted.
    SIGTERM and SIGINT let the step end, save a checkpoint and exit with 143 or 130.

    Args:
        config: the stage.
        model: the system, built from `config.model`.
        loader: the data; the caller closes it.
        workdir: the run directory; made if absent.
        set_weights: weight of each data set's loss; 1 for all by default.
        evaluate: (params, step) -> scalars; called every `eval_every` steps and at the end.
        mesh: where to train; made from `config.mesh` by default.

    Raises:
        ConfigError: if `workdir` holds a run of another config, or rules, weights or rows do not fit.
        CheckpointError: if a checkpoint is damaged, of another model, or cannot be written.
        TrainingError: if the loss is not finite, or the data ends.
        SystemExit: after a signal.
    """
    workdir, goodput = Path(workdir).absolute(), Goodput()
    mesh = make_mesh(config.mesh, dcn=config.dcn) if mesh is None else mesh
    plan = step_lib.make_plan(model, config, mesh)
    claim(config, workdir)
    is_first = jax.process_index() == 0
    with jax.set_mesh(mesh), CheckpointManager(workdir, config.keep_checkpoints) as checkpoints:
        with goodput.phase("start"):
            state, step = _start(config, model, plan, loader, workdir, checkpoints)
        with Progress(config.system, step, config.total_steps, quiet=not is_first) as progress:
            progress.say(f"{config.system}: {optimizer.param_summary(state.params, plan.labels)}; "
                         f"mesh {_mesh_text(mesh)}; step {step} of {config.total_steps}; {workdir}")
            if step >= config.total_steps and (done := _last_evaluation(workdir, step)) is not None:
                return Result(step, state.params, done)
            files = MetricWriter(workdir, step) if is_first else contextlib.nullcontext()
            profile = Profile(config.profile_steps if is_first else None, workdir / "profile")
            with files as writer, profile, StopSignal() as stop:
                trainer = _Trainer(config, loader, workdir, evaluate, checkpoints, writer, progress,
                                   step_lib.make_train_step(model, plan, set_weights or {}), mesh,
                                   _operations(model, plan), goodput, profile)
                return trainer.train(state, step, stop)


def claim(config: StageConfig, workdir: Path) -> None:
    """Makes `workdir` the directory of this run, with its `config.json`.

    Raises:
        ConfigError: if it holds a run of another config, or of none that can be read; nothing is changed then.
    """
    path = workdir / "config.json"
    if path.is_file():
        try:
            stored = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}); restore it from checkpoints/<step>/config/config.json, "
                              "or choose another workdir") from error
        config_lib.check_same_run(config, stored, workdir)
    else:
        strangers = manager.steps(workdir) or read_rows(workdir)
        require(not strangers, f"{workdir} holds results of a run, but no config.json to say which; "
                               "choose another workdir")
    text = config_lib.to_json(config)
    if jax.process_index() == 0 and not (path.is_file() and path.read_text() == text):
        workdir.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_text(text)
        os.replace(draft, path)


def _start(config: StageConfig, model: Model, plan: Plan, loader: Loader, workdir: Path,
           checkpoints: CheckpointManager) -> tuple[TrainState, int]:
    """The state and the data position of the latest checkpoint, or those of step 0."""
    if checkpoints.latest_step() is not None:
        restored = checkpoints.restore(plan.template)
        if restored.step < config.total_steps:
            loader.set_state(*restored.data)
        return restored.state, restored.step
    given = {}
    for part, source in config.init_from.items():
        folder = Path(source).expanduser() if "/" in source else workdir.parent / source
        wanted = step_lib.subtree(plan.params, part)
        if is_adapter_folder(folder):
            given[""] = nest(read_adapter(folder, plan.params, config.model, config.low_rank))
        elif pretrained.is_published(folder):
            bare = nest({path: leaf for path, leaf in flatten(wanted).items() if not is_adapter(path)})
            given[part] = pretrained.read_part(folder, part, part_config(config.model, part), bare)
        else:
            given[part] = manager.restore_params(folder, part, wanted, may_lack=is_adapter)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    return step_lib.init_state(model, plan, key, given), 0


def part_config(config: Any, part: str) -> Any:
    """The config of the part of a system at a path of its parameters, such as "lm"; ConfigError if it has none."""
    for name in part.split("/") if part else ():
        require(hasattr(config, name), f"init_from.{part}: only parts with a config of their own, such as "
                                       f"{', '.join(f.name for f in dataclasses.fields(config))}, can be filled from "
                                       "published weights")
        config = getattr(config, name)
    return config


@dataclasses.dataclass
class _Trainer:
    """What the steps of a run share."""

    config: StageConfig
    loader: Loader
    workdir: Path
    evaluate: Evaluate | None
    checkpoints: CheckpointManager
    writer: MetricWriter | None         # of the first process
    progress: Progress
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    mesh: Mesh
    operations: Callable[[Mapping[str, Batch]], float]
    goodput: Goodput
    profile: Profile

    def __post_init__(self):
        self.key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        chip = chip_of(self.mesh.devices.flat[0].device_kind)
        self.clock = Clock(share_of_rows(self.mesh)[1], self.operations, chip and chip.flops * self.mesh.size)
        self.skipped = 0

    def train(self, state: TrainState, step: int, stop: "StopSignal") -> Result:
        """Runs from `step` to the end."""
        config, metrics, begin = self.config, None, time.perf_counter()
        first, self.skipped = step, int(state.skipped)
        while step < config.total_steps:
            batches = self._next_batches(step)
            self.profile.before(step + 1)
            with self.goodput.phase("compile") if step == first else contextlib.nullcontext():
                previous, (state, metrics) = metrics, self.update(state, batches, self.key)
                if step == first:
                    jax.block_until_ready(metrics)
            if previous is not None:
                self._check(step, previous)     # one step late, so that the devices always have work waiting
            step += 1
            self.progress.step()
            if said := self.profile.after(step, metrics):
                self.progress.say(said)
            if step == first + 1:
                self.progress.say(f"compiled and made the first step in {duration(time.perf_counter() - begin)}")
            if step % config.log_every == 0 or step == config.total_steps:
                self._log(step, metrics)
            if step == first + 1:
                self.clock.reset()
            with self.clock.paused():
                signum = stop.received(step)
                if signum or _is_due(step, config.checkpoint_every):
                    self._check(step, metrics)
                    self._save(step, state)
                if signum:
                    self.checkpoints.wait()
                    raise SystemExit(128 + signum)
                if _is_due(step, config.eval_every) and step < config.total_steps:
                    self._run_evaluation(state, step)
        if metrics is not None:
            self._check(step, metrics)
            self._save(step, state)
        evaluation = self._run_evaluation(state, step)
        self.progress.say(f"{self.config.system}: {self.goodput.text()}{self.clock.text()}")
        return Result(step, state.params, evaluation)

    def _next_batches(self, step: int) -> dict[str, Batch]:
        with self.clock.waiting(), self.goodput.phase("data"):
            try:
                batches = next(self.loader)
            except StopIteration:
                raise TrainingError(f"the data ended after step {step} of total_steps={self.config.total_steps}; "
                                    "repeat the data or lower total_steps") from None
        self.clock.count(batches)
        return {name: _put(name, batch, self.mesh) for name, batch in batches.items()}

    def _check(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Stops the run if more updates were skipped than it may; `metrics` are those of `step`."""
        skipped = int(metrics["skipped"])
        if skipped == self.skipped:
            return
        self.skipped = skipped
        values = ", ".join(f"{name}={float(value):.4g}" for name, value in sorted(metrics.items())
                           if name.split("/")[0] in ("loss", "grad_norm"))
        text = f"step {step}: the loss or its gradient is not finite ({values}); the update was skipped"
        if skipped <= self.config.max_nonfinite:
            self.progress.say(f"{text}, {skipped} of max_nonfinite={self.config.max_nonfinite} so far")
            return
        self.checkpoints.wait()
        latest = self.checkpoints.latest_step()
        kept = "there is no checkpoint yet" if latest is None else f"the last checkpoint, of step {latest}, is intact"
        raise TrainingError(f"{text}. Lower optimizer.lr, set optimizer.clip_norm, or look at the data of that step; "
                            f"max_nonfinite={self.config.max_nonfinite} is how many to skip. In {self.workdir} {kept}")

    def _log(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        row = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        row |= self.clock.rates() | self.goodput.shares() | self.loader.metrics()
        self._write(step, row)
        self.progress.row(step, row)

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(step, row)

    def _save(self, step: int, state: TrainState) -> None:
        with self.goodput.phase("checkpoint"):
            self.checkpoints.save(step, state, self.loader.get_state(), to_dict(self.config))
        if jax.process_index() == 0:
            plots.plot_loss(read_rows(self.workdir), self.workdir / "loss.png")

    def _run_evaluation(self, state: TrainState, step: int) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        with self.goodput.phase("evaluation"):
            values = {name: float(value) for name, value in self.evaluate(state.params, step).items()}
        if values:
            self._write(step, {EVAL + name: value for name, value in values.items()})
            self.progress.say(f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return values


class StopSignal:
    """SIGTERM and SIGINT as a question the loop asks between steps; a second one acts at once.

    Several processes must stop at the same step; there JAX's preemption service spreads a SIGTERM.
    """

    def __init__(self):
        self._signum, self._old = 0, {}

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
        self._old = {}

    def _handle(self, signum: int, _) -> None:
        self._signum = signum
        self.__exit__()
        os.write(2, f"\n{signal.Signals(signum).name}: saving after this step\n".encode())   # print may be interrupted

    def received(self, step: int) -> int:
        """The number of the signal to obey after `step`, or 0."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._signum


def _operations(model: Model, plan: Plan) -> Callable[[Mapping[str, Batch]], float]:
    """A function from the batches of a step to the operations they need by the model's formula."""
    trained = [path for path, group in plan.labels.items() if group != config_lib.FROZEN]

    def trains(part: str) -> bool:
        return any(path == part or path.startswith(f"{part}/") for path in trained)

    def operations(batches: Mapping[str, Batch]) -> float:
        work = Work(*map(sum, zip(*map(Work.of, batches.values()), strict=True)))
        return sum(cost.total for cost in model.flops(work, trains).values())

    return operations


def _put(name: str, batch: Batch, mesh: Mesh) -> Batch:
    """Lays this process's rows of a batch over the devices."""
    rows = len(batch.tokens) * share_of_rows(mesh)[1]
    parts = num_row_parts(mesh)
    require(rows % parts == 0,
            f"data set {name!r} has {rows} rows a step, which must be a multiple of the {parts} devices on mesh axes "
            f"{' x '.join(RULES['batch'])}; try {max(rows // parts, 1) * parts} or {(rows // parts + 1) * parts}")
    return jax.tree.map(lambda x: put_rows(x, mesh), batch)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _last_evaluation(workdir: Path, step: int) -> dict[str, float] | None:
    """What the final evaluation of a finished run reported; None if it has none."""
    for row in reversed(read_rows(workdir)):
        values = {name.removeprefix(EVAL): value for name, value in row.items() if name.startswith(EVAL)}
        if values and row["step"] == step:
            return values
    return None


def _mesh_text(mesh: Mesh) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "of one device"
