"""`mmjax train`: runs the stages of a config in one run directory."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from mmjax import models
from mmjax.checkpoint import manager
from mmjax.checkpoint.convert import pretrained
from mmjax.checkpoint.convert.adapter import is_adapter_folder
from mmjax.cli import agreement, arguments, report, stages
from mmjax.cli.fit import check_fit, check_rows
from mmjax.cli.trained import make_writer
from mmjax.data.loader import Loader
from mmjax.data.prepare import prepare
from mmjax.evals import check_evals
from mmjax.evals.prompts import Writer
from mmjax.models.interface import Model, Params
from mmjax.parallel import make_mesh, processes, share_of_rows
from mmjax.training import loop
from mmjax.training.config import StageConfig
from mmjax.training.step import make_plan
from mmjax.training.structure import ConfigError


class Job(NamedTuple):
    """A stage that is ready to run."""

    config: StageConfig
    workdir: Path
    model: Model
    mesh: Mesh
    writer: Writer


def run(argv: Sequence[str]) -> int:
    """Trains, or continues, and shows what was learned."""
    parser = arguments.make_parser("train", "Train the stages of a config, or continue where the run directory ends.",
                                   config=True)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory; made if absent")
    args = arguments.parse(parser, argv)
    resolved = stages.from_args(args)
    agreement.check_start(resolved)
    jobs = [make_job(name, config, args.workdir) for name, config in resolved]
    with processes.first_then_others():
        stages.check_same_run(resolved, args.workdir)
        for job in jobs:
            prepare(job.config.data, progress=sys.stderr.isatty())
            check_data(job)
    agreement.check_data(resolved)
    stages.write(resolved, args.workdir)
    for job in jobs:
        result = train(job)
        if result.evaluation:
            print(report.summary(result.evaluation, job.workdir))
    return 0


def make_job(name: str, config: StageConfig, workdir: Path) -> Job:
    """Builds a stage and checks all that can be before anything is written: the last one is not to fail after hours.

    Raises:
        ValueError: if its data, model, rules and mesh do not fit each other or this machine.
    """
    check_fit(name, config)
    job = Job(config, workdir / name, models.build(config.system, config.model, config.low_rank),
              make_mesh(config.mesh, dcn=config.dcn), make_writer(config))
    check_rows(name, config, job.mesh)
    make_plan(job.model, config, job.mesh)
    for part, source in config.init_from.items():
        if "/" in source and pretrained.is_published(source):
            pretrained.table_of_part(source, part, loop.part_config(config.model, part))
        elif "/" in source and not is_adapter_folder(source) and not manager.steps(Path(source).expanduser()):
            raise ConfigError(f"{name or 'config'}: init_from names {source}, which holds neither a checkpoint nor "
                              "published weights")
    return job


def check_data(job: Job) -> None:
    """Opens all data and checks the evaluations.

    Raises:
        FileNotFoundError, DocumentError: if data is missing or damaged.
        ValueError: if an evaluation does not fit its data or the model.
    """
    for data_set in job.config.data.sets.values():
        for source in data_set.sources:
            source.open()
    check_evals(job.config.evals, job.model, job.writer)


def train(job: Job) -> loop.Result:
    """Runs one stage to its end and writes what its evaluations show."""
    config = job.config
    weights = {name: data_set.loss_weight for name, data_set in config.data.sets.items()}

    def evaluate(params: Params, step: int) -> dict[str, float]:
        results = report.evaluate(config, job.model, params, job.writer, progress=sys.stderr.isatty())
        report.write(results, config.evals, job.workdir, step=step)
        return results.metrics

    with Loader(config.data, *share_of_rows(job.mesh)) as loader:
        return loop.run(config, job.model, loader, job.workdir, mesh=job.mesh, set_weights=weights,
                        evaluate=evaluate if config.evals else None)
