"""From a config file or a run directory to checked stages: here the config types of all floors meet."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax import models
from mmjax.data.prepare import DataConfig
from mmjax.training import config as config_lib
from mmjax.training.config import StageConfig
from mmjax.training.structure import ConfigError, choices, to_dict

Stages = tuple[tuple[str, StageConfig], ...]
FILE = "config.json"


def resolve(values: Mapping[str, Any]) -> Stages:
    """(name, config) of every stage; ConfigError names what is wrong."""
    return config_lib.resolve(values, model_types=models.CONFIGS, data_type=DataConfig, eval_type=Any)


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
    try:
        return resolve(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
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
