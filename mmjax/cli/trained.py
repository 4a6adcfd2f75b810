"""A trained model, from its run directory."""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax

from mmjax import models
from mmjax.checkpoint import manager
from mmjax.cli import arguments, stages
from mmjax.evals.prompts import Writer
from mmjax.models.interface import Model, Params
from mmjax.parallel import make_mesh
from mmjax.training.config import StageConfig
from mmjax.training.step import make_plan


class Trained(NamedTuple):
    """A model with what it needs to read documents.

    Attributes:
        config: of the stage that trained it.
        workdir: of that stage.
        step: updates made.
        model, params: the system.
        writer: how documents become tokens and pixels, as in training.
    """

    config: StageConfig
    workdir: Path
    step: int
    model: Model
    params: Params
    writer: Writer


def make_parser(command: str, summary: str, config: bool = False) -> argparse.ArgumentParser:
    """A parser with the flags that say which model."""
    parser = arguments.make_parser(command, summary, config)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory")
    parser.add_argument("--stage", help="stage of the run; the last by default")
    parser.add_argument("--step", type=int, help="checkpoint; the latest by default")
    return parser


def load(args: argparse.Namespace) -> Trained:
    """Reads the model that the flags of `make_parser` name, under the config of `--config` or of the run.

    On several devices the parameters lie over the config's mesh, else as they are stored on the only one.

    Raises:
        ConfigError: if there is no such run or stage.
        CheckpointError: if there is no such checkpoint, or it is damaged or of another model.
    """
    name, config = stages.select(stages.from_args(args), args.stage)[-1]
    workdir = args.workdir / name
    model, template = models.build(config.system, config.model, config.low_rank), None
    if jax.device_count() > 1:
        template = make_plan(model, config, make_mesh(config.mesh)).params
    params = manager.restore_params(workdir, template=template, step=args.step)
    step = manager.steps(workdir)[-1] if args.step is None else args.step
    return Trained(config, workdir, step, model, params, make_writer(config))


def make_writer(config: StageConfig) -> Writer:
    """How documents become tokens and pixels: as in the first data set in the format of the system, or the first."""
    sets = list(config.data.sets.values())
    data = next((data for data in sets if data.template == config.system), sets[0])
    return Writer(config.data.make_tokenizer(), data.make_template(), data.image, data.frames)
