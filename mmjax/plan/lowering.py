"""The train step of a config at full size, traced and compiled without data, parameters or devices."""

import re
import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import models
from mmjax.batch import Batch
from mmjax.data.config import DataSetConfig
from mmjax.models.interface import Model
from mmjax.parallel import batch_sharding
from mmjax.training.config import StageConfig
from mmjax.training.step import Plan, make_plan, make_train_step


class Step(NamedTuple):
    """The train step before it is compiled.

    Attributes:
        model: the system.
        plan: parameters, optimizer state and their shardings.
        batches: one of each data set, as shapes.
        traced: of `jax.jit`.
        seconds: that tracing took.
    """

    model: Model
    plan: Plan
    batches: dict[str, Batch]
    traced: Any
    seconds: float


class Compiled(NamedTuple):
    """What a compiler made of a step.

    Attributes:
        memory: bytes on one device: arguments, output, aliased (in both), temporary, code, and needed at the peak.
        fits: whether the compiler got it into the memory of the device; on GPUs and CPUs it does not look.
        text: HLO; empty if the compiler gave up.
        seconds: of wall time for lowering and compiling.
        cpu_seconds: of this process meanwhile.
        host_bytes: that this process had at most.
    """

    memory: dict[str, float]
    fits: bool
    text: str
    seconds: float
    cpu_seconds: float
    host_bytes: float


def batch_of(data: DataSetConfig, mesh: Mesh) -> Batch:
    """The shapes of one batch of a data set, its rows over the mesh."""
    b, t, i, f, size = data.batch_size, data.seq_len, data.images_per_row, data.frames, data.image.size
    sharding = batch_sharding(mesh)

    def leaf(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    tokens = leaf((b, t), jnp.int32)
    return Batch(tokens, tokens, leaf((b, t), jnp.float32), tokens, tokens, tokens, tokens,
                 leaf((b, i, f, size, size, 3), jnp.uint8), leaf((b, i), jnp.int32))


def trace(config: StageConfig, mesh: Mesh) -> Step:
    """Traces the step that the training loop runs.

    Raises:
        ConfigError, ValueError: if config and mesh do not fit each other.
    """
    begin = time.perf_counter()
    model = models.build(config.system, config.model, config.low_rank)
    plan = make_plan(model, config, mesh)
    batches = {name: batch_of(data, mesh) for name, data in config.data.sets.items()}
    weights = {name: data.loss_weight for name, data in config.data.sets.items()}
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        traced = make_train_step(model, plan, weights).trace(plan.template, batches, key)
    return Step(model, plan, batches, traced, time.perf_counter() - begin)


def compile_step(step: Step, mesh: Mesh) -> Compiled:
    """Compiles a step for the devices of its mesh. A step too large for them is a result, too, and no error."""
    begin, cpu = time.perf_counter(), _cpu_seconds()

    def result(memory, fits, text):
        return Compiled(memory, fits, text, time.perf_counter() - begin, _cpu_seconds() - cpu,
                        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    with jax.set_mesh(mesh):
        lowered = step.traced.lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            wanted = re.search(r"required for HLO temporaries \(([\d.]+)([MGT])\)|Used ([\d.]+)([MGT]) of", str(error))
            if "RESOURCE_EXHAUSTED" not in str(error) or wanted is None:
                raise
            number, unit = (wanted[1], wanted[2]) if wanted[1] else (wanted[3], wanted[4])
            return result({"needed": float(number) * 2 ** {"M": 20, "G": 30, "T": 40}[unit]}, False, "")
    m = compiled.memory_analysis()
    memory = {"arguments": m.argument_size_in_bytes, "output": m.output_size_in_bytes,
              "aliased": m.alias_size_in_bytes, "temporary": m.temp_size_in_bytes,
              "code": m.generated_code_size_in_bytes}
    memory["needed"] = sum(memory.values()) - 2 * memory["aliased"]
    return result(memory, True, compiled.as_text())


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
