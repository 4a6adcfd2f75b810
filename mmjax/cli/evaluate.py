"""`mmjax evaluate`: evaluates a run again, as its config says or another."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mmjax.cli import arguments, report, trained
from mmjax.evals import check_evals
from mmjax.training.structure import ConfigError


def run(argv: Sequence[str]) -> int:
    """Prints the table of the evaluations, and writes it with its pictures."""
    parser = trained.make_parser("evaluate", "Evaluate a run, by the evals of its own config or of --config.", True)
    parser.add_argument("--out", type=Path, help="folder of the results; <workdir>/<stage>/eval-<step> by default")
    args = arguments.parse(parser, argv)
    it = trained.load(args)
    if not it.config.evals:
        raise ConfigError(f"the config of {it.workdir} has no evals; give --config with some")
    check_evals(it.config.evals, it.model, it.writer)
    results = report.evaluate(it.config, it.model, it.params, it.writer, progress=sys.stderr.isatty())
    out = args.out or it.workdir / f"eval-{it.step}"
    report.write(results, it.config.evals, out, workdir=str(it.workdir), step=it.step)
    print(report.summary(results.metrics, out))
    return 0
