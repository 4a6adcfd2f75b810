"""`mmjax plan`: what a step will cost on a machine, before one is rented."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from mmjax.cli import arguments, stages
from mmjax.cli.fit import check_rows
from mmjax.parallel import make_mesh
from mmjax.plan import lowering, memory, picture, report
from mmjax.plan import machine as machines
from mmjax.plan.machine import Machine
from mmjax.plan.report import Report
from mmjax.plan.search import Search
from mmjax.training.config import StageConfig

COMPILED = 3        # of the variants of a search


def run(argv: Sequence[str]) -> int:
    """Plans the stages of a config; 1 if one of them does not fit."""
    parser = arguments.make_parser(
        "plan", "Trace the training step of a config at full size, compile it for a machine that need not be at hand, "
        "and say what it needs: memory, operations, network, time. No data is read.", config=True)
    parser.add_argument("--topology", required=True, metavar="NAME:SIZES",
                        help=f"the machine, such as {', '.join(machines.EXAMPLES.values())}; *N for N slices of TPUs")
    parser.add_argument("--stage", help="plan this stage only")
    parser.add_argument("--search", action="store_true",
                        help=f"try other meshes, rows and remat policies, and compile the best {COMPILED}")
    parser.add_argument("--out", type=Path, default=Path("plans"), help="folder for the JSON and the PNG")
    parser.add_argument("--effort", choices=("O0", "O1", "O2", "O3"), default="O0",
                        help="of the compiler; O0 is several times faster on TPUs, with up to a quarter other memory")
    args = arguments.parse(parser, argv)
    jax.config.update("jax_platforms", "cpu")       # of this process; the machine is elsewhere
    jax.config.update("jax_optimization_level", os.environ.get("JAX_OPTIMIZATION_LEVEL", args.effort))
    machine = machines.find(args.topology)
    path = Path(argument_of(argv)) if args.config is not None else Path("config")
    fit = True
    for name, config in stages.select(stages.from_args(args), args.stage):
        title = f"{path.parent.name}-{path.name}".replace(".py", "") + (f"-{name}" if name else "")
        reports = plan_stage(title, name, config, machine, args.search)
        save(reports, args.out)
        fit &= any(r.fits for r in reports)
    return 0 if fit else 1


def argument_of(argv: Sequence[str]) -> str:
    """FILE.py[:ARG] of the command line."""
    first, *_ = arguments.split_config(argv)[0]
    return first.partition("=")[2]


def plan_stage(title: str, name: str, config: StageConfig, machine: Machine, search: bool) -> list[Report]:
    """Plans a stage as configured and, for `search`, the best variants; prints each as soon as it is known."""
    first, step = plan_one(title, name, config, machine)
    others = Search(config, machine, report.model_costs(config, step), _factor(config, machine, first, step))
    if not first.fits:
        near = others.nearest(_sizes(config, machine))
        remark = f"the nearest that fits, by estimate: {near.text}" if near else \
            "by estimate it fits on no mesh of this machine, however its rows are cut; take a larger one"
        first = dataclasses.replace(first, remark=remark)
    print(report.text(first), end="\n\n", flush=True)
    if not search:
        return [first]
    reports = []
    for candidate in others.best(COMPILED):
        tried, _ = plan_one(title, name, candidate.config, machine)
        print(report.text(tried), end="\n\n", flush=True)
        reports.append(tried)
    ranked = sorted([first, *reports], key=lambda r: (not r.fits, -r.mfu[1] if not math.isnan(r.mfu[1]) else 0))
    for place, r in enumerate(ranked, 1):
        mesh = " x ".join(f"{axis}={size}" for axis, size in r.mesh.items())
        print(f"{place}. {'fits' if r.fits else 'DOES NOT FIT'}  MFU {r.mfu[0]:.1%} to {r.mfu[1]:.1%}  mesh {mesh}, "
              f"remat {r.remat}, accumulate {r.accumulate}, rows {', '.join(f'{n} {b}' for n, b in r.rows.items())}")
    return ranked


def plan_one(title: str, name: str, config: StageConfig, machine: Machine) -> tuple[Report, lowering.Step]:
    """Traces and compiles one variant."""
    machines.check_dcn(machine, config.dcn)
    mesh = make_mesh(config.mesh, machine.devices, dcn=config.dcn)
    check_rows(name, config, mesh)
    step = lowering.trace(config, mesh)
    return report.make(title, config, machine, mesh, step, lowering.compile_step(step, mesh)), step


def save(reports: Sequence[Report], folder: Path) -> None:
    """Writes NAME.json and NAME.png, for several plans all of them in one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / report.file_name(reports[0])
    values = json.dumps([r.as_dict() for r in reports], indent=1)
    path.with_name(path.name + ".json").write_text(values + "\n")
    picture.draw(reports, path.with_name(path.name + ".png"))
    print(f"saved {path}.json and .png")


def _factor(config: StageConfig, machine: Machine, compiled: Report, step: lowering.Step) -> float:
    """Activations by the compiler over those by estimate; at least 1 where the compiler gave up before the end."""
    sizes = _sizes(config, machine)
    rest = compiled.memory["rest"] - memory.of_workspace(config, step.plan.template, sizes)
    return min(max(rest / memory.of_activations(config, sizes), 0.3 if compiled.traffic else 1.0), 3.0)


def _sizes(config: StageConfig, machine: Machine) -> dict[str, int]:
    return dict(make_mesh(config.mesh, machine.devices, dcn=config.dcn).shape)
