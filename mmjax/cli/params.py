"""`mmjax params`: the table of parameters of a config, without allocating one."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh

from mmjax import models
from mmjax.cli import arguments, stages
from mmjax.parallel import mesh_shape
from mmjax.training import optimizer
from mmjax.training.config import StageConfig
from mmjax.training.step import make_plan


def run(argv: Sequence[str]) -> int:
    """Prints a table per stage: path, shape, dtype, sharding, group, trainable, and the totals."""
    parser = arguments.make_parser("params", "Print the parameters of a config: path, shape, dtype, sharding, group, "
                                   "and whether they train. Nothing is allocated, so any size works.", config=True)
    parser.add_argument("--devices", type=int, help="devices to lay the mesh over; those the mesh names by default")
    parser.add_argument("--stage", help="show this stage only")
    args = arguments.parse(parser, argv)
    for name, config in stages.select(stages.from_args(args), args.stage):
        mesh = abstract_mesh(config, args.devices)
        plan = make_plan(models.build(config.system, config.model, config.low_rank), config, mesh)
        shape = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
        print(f"{name or 'config'}: system {config.system}, mesh {shape}")
        print(optimizer.param_table(plan.params, plan.labels), end="\n\n")
    return 0


def abstract_mesh(config: StageConfig, devices: int | None = None) -> AbstractMesh:
    """The mesh of a config over devices that need not exist.

    Args:
        config: the stage.
        devices: how many; by default the product of the mesh's sizes, its -1 filled with the visible devices.

    Raises:
        ValueError: if they do not fill the mesh.
    """
    fixed = math.prod(size for size in config.mesh.values() if size != -1)
    if devices is None:
        devices = max(jax.device_count() // fixed, 1) * fixed if -1 in config.mesh.values() else fixed
    shape = mesh_shape(config.mesh, devices)
    return AbstractMesh(tuple(shape.values()), tuple(shape))
