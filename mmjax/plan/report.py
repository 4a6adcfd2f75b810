"""What a plan says: memory, operations, network, time and utilisation, as data and as text."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from mmjax.parts.flops import Cost, Work
from mmjax.plan import memory
from mmjax.plan.lowering import Compiled, Step
from mmjax.plan.machine import Machine
from mmjax.plan.operations import count_products
from mmjax.plan.program import Collective, Program
from mmjax.training.config import FROZEN, StageConfig

ASSUMPTIONS = (
    "every row is one document without padding and every image slot is used",
    "model FLOPs are what the mathematics needs; executed FLOPs add what is computed again for the backward pass",
    "products are shared evenly by all devices, and run at the chip's peak in bfloat16",
    "attention counts the visible pairs alone, and five products where its backward pass needs four",
    "fusions read and write main memory once; collectives are rings at the full speed of their links",
    "MFU lies between 'nothing overlaps' (the sum of the three times) and 'all overlaps' (the longest of them)",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """One plan. Bytes and seconds are those of one device and one step.

    Attributes:
        name: of the config and stage.
        topology: of the machine.
        mesh: sizes of the axes that are not 1.
        rows: rows of each data set.
        remat: what the language model computes again.
        accumulate: parts of the rows that follow on each other.
        devices: how many JAX devices.
        memory: trainable, frozen, optimizer, gradients, batch, rest (activations and workspace), needed, available.
        fits: whether it does.
        model_flops: by part, of all devices.
        executed_flops: of all devices.
        traffic: through main memory.
        collectives: the exchanges between devices.
        seconds: compute, memory, network.
        mfu: (nothing overlaps, all overlaps).
        compile: seconds, cpu_seconds, host_bytes, trace_seconds, instructions, unknown_loops.
        remark: what else to know, such as the nearest mesh that fits.
        peak: operations a second of one device; bandwidth: of its memory.
    """

    name: str
    topology: str
    mesh: dict[str, int]
    rows: dict[str, int]
    remat: str
    accumulate: int
    devices: int
    memory: dict[str, float]
    fits: bool
    model_flops: dict[str, float]
    executed_flops: float
    traffic: float
    collectives: list[Collective]
    seconds: dict[str, float]
    mfu: tuple[float, float]
    compile: dict[str, float]
    peak: float
    bandwidth: float
    remark: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = dataclasses.asdict(self)
        values["collectives"] = [c._asdict() | {"group": len(c.group)} for c in self.collectives]
        return values | {"assumptions": ASSUMPTIONS}


def make(name: str, config: StageConfig, machine: Machine, mesh: Mesh, step: Step, compiled: Compiled) -> Report:
    """Puts a plan together from a step and what its compiler said."""
    sizes, chip = dict(mesh.shape), machine.chip
    costs = model_costs(config, step)
    executed = count_products(step.traced.jaxpr) + executed_attention(config.model, costs)
    groups = memory.of_state(step.plan.template, step.batches, sizes)
    needed = compiled.memory["needed"]
    groups |= {"rest": max(needed - sum(groups.values()), 0.0), "needed": needed, "available": chip.memory}
    program = Program(compiled.text, has_fast_memory=machine.platform == "tpu") if compiled.text else None
    collectives = program.collectives(sizes) if program else []
    traffic = program.memory_traffic() if program else 0.0
    seconds = {
        "compute": executed / mesh.size / chip.flops,
        "memory": traffic / chip.bandwidth,
        "network": sum(c.sent / machine.bandwidth(c.group) for c in collectives),
    }
    total = sum(cost.total for cost in costs.values())
    ideal = total / mesh.size / chip.flops
    return Report(
        name=name, topology=machine.name, mesh={a: n for a, n in sizes.items() if n > 1} or {"data": 1},
        rows={n: data.batch_size for n, data in config.data.sets.items()}, remat=config.model.lm.remat,
        accumulate=config.accumulate, devices=mesh.size, memory=groups, fits=compiled.fits and needed <= chip.memory,
        model_flops={part: cost.total for part, cost in costs.items()}, executed_flops=executed, traffic=traffic,
        collectives=collectives, seconds=seconds,
        mfu=(ideal / sum(seconds.values()), ideal / max(seconds.values())) if program else (math.nan, math.nan),
        compile={"seconds": compiled.seconds, "cpu_seconds": compiled.cpu_seconds, "host_bytes": compiled.host_bytes,
                 "trace_seconds": step.seconds, "instructions": program.num_instructions if program else 0,
                 "unknown_loops": program.unknown_loops if program else 0},
        peak=chip.flops, bandwidth=chip.bandwidth)


def model_costs(config: StageConfig, step: Step) -> dict[str, Cost]:
    """Operations that one step needs, by part of the model."""
    def trains(path: str) -> bool:
        return any(group != FROZEN and (name == path or name.startswith(f"{path}/"))
                   for name, group in step.plan.labels.items())

    work = [Work.full(batch) for batch in step.batches.values()]
    return step.model.flops(Work(*map(sum, zip(*work, strict=True))), trains)


def executed_attention(model: Any, costs: Mapping[str, Cost]) -> float:
    """Operations of attention as kernels run it: the weights once more backward, all once more under `remat`."""
    total = 0.0
    for part, cost in costs.items():
        remat = getattr(getattr(model, part, None), "remat", model.lm.remat)
        again = remat != "none" and cost.attention_backward > 0
        total += cost.attention_forward * (1 + again) + cost.attention_backward * 5 / 4
    return total


def text(report: Report) -> str:
    """The plan for a person to read."""
    r, m = report, report.memory
    mesh = " x ".join(f"{axis}={size}" for axis, size in r.mesh.items())
    spare = m["available"] - m["needed"]
    verdict = f"fits, {gib(spare)} to spare" if r.fits else f"DOES NOT FIT, by {gib(-spare)}{_at_least(r)}"
    lines = [
        f"{r.name} on {r.topology}: {r.devices} devices, mesh {mesh}, remat {r.remat}, "
        f"{f'accumulate {r.accumulate}, ' if r.accumulate > 1 else ''}"
        f"rows {', '.join(f'{name} {n}' for name, n in r.rows.items())}",
        "memory    " + "  ".join(f"{group} {gib(m[group])}" for group in
                                 ("trainable", "frozen", "optimizer", "gradients", "batch", "rest")),
        f"          peak {gib(m['needed'])} of {gib(m['available'])} a device: {verdict}",
        f"FLOPs     model {sum(r.model_flops.values()):.3g} a step ("
        + ", ".join(f"{part} {flops / sum(r.model_flops.values()):.0%}" for part, flops in r.model_flops.items())
        + f"), executed {r.executed_flops:.3g}",
    ]
    if r.collectives or r.traffic:
        lines += [f"traffic   {gib(r.traffic)} through memory a device and step"]
        lines += [f"network   {c.kind:<20} over {' x '.join(c.axes):<14} {c.count:>8.0f} times  "
                  f"{gib(c.bytes):>10} read  {gib(c.sent):>10} sent" for c in r.collectives]
        lines += [
            "roofline  " + "  ".join(f"{what} {seconds:.4g} s" for what, seconds in r.seconds.items()),
            f"MFU       {r.mfu[0]:.1%} if nothing overlaps, {r.mfu[1]:.1%} if all does: "
            f"{sum(r.seconds.values()):.3g} to {max(r.seconds.values()):.3g} s a step"]
    c = r.compile
    lines += [f"compile   {c['seconds']:.0f} s ({c['cpu_seconds']:.0f} s of CPU) after {c['trace_seconds']:.0f} s of "
              f"tracing, {gib(c['host_bytes'])} of host memory, {c['instructions']:,.0f} instructions"]
    if c["unknown_loops"]:
        lines += [f"          {c['unknown_loops']:.0f} loops of a length that only the data says count as one round"]
    return "\n".join(lines + ([f"          {r.remark}"] if r.remark else []))


def _at_least(report: Report) -> str:
    return "" if report.traffic else " at least (the compiler gave up there)"


def gib(size: float) -> str:
    """1234567890 -> "1.15 GiB"; small sizes in MiB."""
    return f"{size / 2**30:,.2f} GiB" if abs(size) >= 2**30 / 10 else f"{size / 2**20:,.1f} MiB"


def file_name(report: Report) -> str:
    """A name for the plan's files: config, stage and topology without what a file cannot be called."""
    return re.sub(r"[^\w.-]+", "-", f"{report.name}-{report.topology}").strip("-")
