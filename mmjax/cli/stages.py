"""From a config file or a run directory to checked stages: here the config types of all floors meet."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax import models
from mmjax.data.prepare import DataConfig
from mmjax.evals.matching import AnyEval
from mmjax.training import config as config_lib
from mmjax.training.config import StageConfig
from mmjax.training.structure import ConfigError, choices, to_dict

Stages = tuple[tuple[str, StageConfig], ...]
FILE = "config.json"


def resolve(values: Mapping[str, Any]) -> Stages:
    """(name, config) of every stage; ConfigError names what is wrong."""
    return config_lib.resolve(values, model_types=models.CONFIGS, data_type=DataConfig, eval_type=AnyEval)


def from_args(args: argparse.Namespace) -> Stages:
    """The stages of `--config`, or else of the run in `--workdir`.

    Raises:
        ConfigError: if neither is given, or they do not hold a config.
    """
    if args.config is not None:
        return resolve(args.config)
    if getattr(args, "workdir", None) is None:
        raise ConfigError("no config given; name one with --config=FILE.py, for example experiments/flamingo/tiny.py")
    return from_run(args.workdir)


def from_run(workdir: Path) -> Stages:
    """The stages of a run, from its `config.json`.

    Raises:
        ConfigError: if there is none or it cannot be read.
    """
    path = workdir / FILE
    if not path.is_file():
        near = [str(p.parent) for p in (*workdir.glob(f"*/{FILE}"), *workdir.parent.glob(f"*/{FILE}"))]
        raise ConfigError(f"{workdir} is no run directory, it has no {FILE}; {choices(workdir, near)}")
    values = _read(path)
    try:
        return resolve(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def select(stages: Stages, name: str | None) -> Stages:
    """All stages, or the one of that name; ConfigError if there is none."""
    if name is None:
        return stages
    if name not in dict(stages):
        raise ConfigError(f"there is no stage {name!r}; {choices(name, [n for n, _ in stages])}")
    return ((name, dict(stages)[name]),)


def to_json(stages: Stages) -> str:
    """The stages as JSON that `resolve` reads back."""
    values = {name: to_dict(config) for name, config in stages}
    values = values[""] if "" in values else {"stages": list(values), **values}
    return json.dumps(values, indent=2) + "\n"


def check_same_run(stages: Stages, workdir: Path) -> None:
    """Refuses a `workdir` that holds a run of other stages; ConfigError names the fields that may not differ."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir={workdir} is a file; choose a folder")
    names = [name for name, _ in stages]
    if (path := workdir / FILE).is_file() and (stored := _read(path).get("stages", [""])) != names:
        raise ConfigError(f"{workdir} holds a run of the stages {stored}, not {names}; choose another workdir")
    for name, config in stages:
        path = workdir / name / FILE
        if path.is_file():
            config_lib.check_same_run(config, _read(path), path.parent)


def write(stages: Stages, workdir: Path) -> None:
    """Writes the `config.json` of all stages; where there is but one, the loop does so itself."""
    if "" in dict(stages):
        return
    workdir.mkdir(parents=True, exist_ok=True)
    draft = workdir / "config.tmp"
    draft.write_text(to_json(stages), encoding="utf-8")
    os.replace(draft, workdir / FILE)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it from a checkpoint's config/config.json, "
                          "or choose another workdir") from error
