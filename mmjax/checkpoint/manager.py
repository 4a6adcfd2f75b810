"""Checkpoints of a run: `checkpoints/<step>/{state,data,config}`, written asynchronously and atomically by Orbax.

`state` is a flat dict from path ("trainable/lm/w") to array, `data` has each process's position in the data and
`config` the run's resolved configuration. Whatever is wrong with a checkpoint is one `CheckpointError` that names
the file and what to do; nothing is restored from a step whose digests do not agree.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from mmjax.checkpoint import digests
from mmjax.checkpoint.paths import flatten, nest

FOLDER = "checkpoints"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model; or that could not be written."""


class Restored(NamedTuple):
    """What a checkpoint holds: the state as its template, the data states, the config, the step.

    There is one data state, this process's own; or those of all processes that saved, if they were more or fewer.
    """

    state: Any
    data: tuple[bytes, ...]
    config: dict[str, Any]
    step: int


class CheckpointManager:
    """Writes and reads the checkpoints of one run. Use as a context manager: leaving it waits for the last save.

    Args:
        run_dir: the run directory; its folder `checkpoints` is made when needed.
        keep: how many of the latest checkpoints stay on disk.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2):
        self._run_dir = Path(run_dir).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True,
                                               temporary_path_class=digests.DigestedPath)
        self._orbax = ocp.CheckpointManager(self._run_dir / FOLDER, options=options)

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *_) -> None:
        try:
            self.wait()
        finally:
            self._orbax.close()

    def latest_step(self) -> int | None:
        """The step of the newest committed checkpoint, or None."""
        return max(steps(self._run_dir), default=None)

    def save(self, step: int, state: Any, data: bytes, config: Mapping[str, Any]) -> None:
        """Starts to save a step; does nothing if it is already saved. `state` may be donated once this returns.

        Args:
            step: updates made so far.
            state: pytree of arrays.
            data: this process's position in the data.
            config: what `to_dict` made of the config.

        Raises:
            CheckpointError: if this save or the one before cannot be written.
        """
        self.wait()
        if step in steps(self._run_dir):
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(flatten(state)),
            data=_File(_data_name(), data, everywhere=True),
            config=_File("config.json", json.dumps(dict(config), indent=2).encode(), everywhere=False))
        try:
            self._orbax.save(step, args=args)
        except Exception as error:      # Orbax raises many types here; the text is what matters
            raise self._not_written(step, error) from error

    def wait(self) -> None:
        """Waits until the save in flight, if any, is committed.

        Raises:
            CheckpointError: if it cannot be written.
        """
        try:
            self._orbax.wait_until_finished()
            self._orbax.check_for_errors()
        except Exception as error:
            raise self._not_written(None, error) from error

    def restore(self, template: Any, step: int | None = None) -> Restored:
        """Reads a checkpoint.

        Args:
            template: pytree of `jax.ShapeDtypeStruct` with shardings, of the structure that was saved.
            step: which one; the latest by default.

        Raises:
            CheckpointError: if there is none, it is damaged, or its arrays are not those of the template.
        """
        folder = _verified(self._run_dir, step)
        wanted, stored = flatten(template), _read_metadata(folder)
        _check_names(folder, "", wanted, stored)
        arrays = _read_arrays(folder, wanted, stored)
        state = jax.tree.structure(template).unflatten([arrays[path] for path in wanted])
        return Restored(state, _read_data(folder), _read_config(folder), int(folder.name))

    def _not_written(self, step: int | None, error: Exception) -> CheckpointError:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        kept = ", ".join(map(str, steps(self._run_dir))) or "none"
        return CheckpointError(f"{what} could not be written to {self._run_dir / FOLDER}: {_first_line(error)}; "
                               f"complete checkpoints there: {kept}")


def steps(run_dir: str | Path) -> list[int]:
    """The steps with a checkpoint folder, in order; folders of saves in flight have other names and do not count."""
    folder = Path(run_dir) / FOLDER
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def restore_params(run_dir: str | Path, subtree: str = "", template: Mapping[str, Any] | None = None,
                   step: int | None = None, may_lack: Callable[[str], bool] = lambda path: False) -> dict[str, Any]:
    """Reads parameters of a run, whichever of them it trained or kept frozen.

    Args:
        run_dir: the run directory.
        subtree: path of the part to read, such as "lm"; all by default.
        template: nested dict of `jax.ShapeDtypeStruct` with shardings for that part; arrays are cast to its dtypes.
            By default they come as stored, on the first device.
        step: which checkpoint; the latest by default.
        may_lack: whether a parameter of the template, by its path in it, need not be there; then it is left out.

    Returns:
        Nested dict of arrays: the content of `subtree`, without its own name.

    Raises:
        CheckpointError: if there is no such checkpoint or part, it is damaged, or shapes differ from the template.
    """
    folder = _verified(Path(run_dir).absolute(), step)
    metadata = _read_metadata(folder)
    stored, prefix = {}, f"{subtree}/" if subtree else ""
    for path in metadata:
        kind, _, name = path.partition("/")
        if kind in ("trainable", "frozen") and name.startswith(prefix):
            stored[name.removeprefix(prefix)] = path
    if not stored:
        tops = {path.split("/")[1] for path in metadata if path.startswith(("trainable/", "frozen/"))}
        raise CheckpointError(f"{folder} has no parameters under {subtree!r}, only under {', '.join(sorted(tops))}")
    if template is None:
        wanted = {path: _as_stored(metadata[path]) for path in stored.values()}
    else:
        needed = {name: leaf for name, leaf in flatten(template).items() if name in stored or not may_lack(name)}
        _check_names(folder, prefix, needed, stored)
        wanted = {stored[name]: leaf for name, leaf in needed.items()}
    arrays = _read_arrays(folder, wanted, metadata)
    return nest({name: arrays[path] for name, path in stored.items()})


def _as_stored(array: Any) -> jax.ShapeDtypeStruct:
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(array.shape, jnp.dtype(array.dtype), sharding=sharding)


class _FileHandler(ocp.CheckpointHandler):
    """Writes the bytes it is given: data states and the config are not arrays."""

    def save(self, directory, args: "_File"):
        if args.everywhere or jax.process_index() == 0:
            (directory / args.name).write_bytes(args.content)

    def restore(self, directory, args: "_File"):
        return (directory / args.name).read_bytes()


@ocp.args.register_with_handler(_FileHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _File(ocp.args.CheckpointArgs):
    """A small file of an item, written by each process under a name of its own, or by the first process alone."""

    name: str
    content: bytes
    everywhere: bool


def _verified(run_dir: Path, step: int | None) -> Path:
    """The folder of a step (the latest by default) whose files are as they were written."""
    have = steps(run_dir)
    if not have:
        stages = sorted(p.name for p in run_dir.iterdir() if steps(p)) if run_dir.is_dir() else []
        hint = f"choose one of its stages: {', '.join(stages)}" if stages else "train first, or correct the path"
        raise CheckpointError(f"no checkpoint in {run_dir / FOLDER}; {hint}")
    step = have[-1] if step is None else step
    if step not in have:
        raise CheckpointError(f"no checkpoint of step {step} in {run_dir / FOLDER}, only {', '.join(map(str, have))}")
    folder = run_dir / FOLDER / str(step)
    problems = digests.damage(folder, jax.process_index(), jax.process_count())
    if problems:
        raise _damaged(folder, problems)
    return folder


def _damaged(folder: Path, problems: list[str]) -> CheckpointError:
    earlier = [s for s in steps(folder.parent.parent) if s < int(folder.name)]
    after = f"fall back to step {earlier[-1]}" if earlier else "start from the beginning: it is the oldest"
    more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
    return CheckpointError(f"the checkpoint of step {folder.name} is damaged: {problems[0]}{more}; "
                           f"restore {folder} from a copy, or delete that folder to {after}")


def _read_metadata(folder: Path) -> dict[str, Any]:
    """{path: object with .shape and .dtype} of the stored arrays."""
    try:
        return dict(ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree)
    except Exception as error:
        raise _damaged(folder, [f"{folder / 'state'} is not readable: {_first_line(error)}"]) from error


def _check_names(folder: Path, prefix: str, wanted: Iterable[str], stored: Iterable[str]) -> None:
    wanted, stored = list(wanted), list(stored)
    for names, others, problem in ((set(wanted) - set(stored), stored, "lacks"),
                                   (set(stored) - set(wanted), wanted, "has the unexpected")):
        if names:
            name = min(names)
            near = difflib.get_close_matches(name, others, n=3, cutoff=0.6)
            raise CheckpointError(
                f"{folder} {problem} {prefix + name!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + (f"; nearest on the other side: {', '.join(prefix + n for n in near)}" if near else "")
                + "; it belongs to another model, or to another split into trainable and frozen")


def _read_arrays(folder: Path, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Reads arrays by path, with the dtype and sharding of `wanted`."""
    for path, leaf in wanted.items():
        if tuple(leaf.shape) != tuple(stored[path].shape):
            raise CheckpointError(f"{folder} holds {path} with shape {tuple(stored[path].shape)}, "
                                  f"but the model needs {tuple(leaf.shape)}")
    how = {path: ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
           for path, leaf in wanted.items()}
    args = ocp.args.PyTreeRestore(item=dict(wanted), restore_args=how, partial_restore=True)
    try:
        return ocp.PyTreeCheckpointHandler().restore(folder / "state", args=args)
    except Exception as error:      # TensorStore's texts run over pages; the first line has the cause
        raise _damaged(folder, [f"{folder / 'state'} is not readable: {_first_line(error)}"]) from error


def _data_name() -> str:
    return f"process_{jax.process_index()}-of-{jax.process_count()}"


def _read_data(folder: Path) -> tuple[bytes, ...]:
    path = folder / "data" / _data_name()
    paths = [path] if path.is_file() else sorted(path.parent.glob("process_*"))
    return tuple(p.read_bytes() for p in paths)


def _read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config" / "config.json").read_text())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
