"""Other meshes, batch sizes and remat policies: which would fit, by estimate, and how fast they would be."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from mmjax import models
from mmjax.parallel import AXES, RULES
from mmjax.parts.flops import Cost
from mmjax.plan import memory
from mmjax.plan.machine import Machine
from mmjax.plan.report import executed_attention, gib
from mmjax.training.config import StageConfig
from mmjax.training.step import Plan, make_plan

REMAT = ("full", "dots", "none")
ROWS = (1.0, 0.5, 2.0)              # times those of the config
ACCUMULATE = (1, 2, 4, 8, 16, 32)   # parts of the rows, one after the other
FILL = 0.9                          # of the memory: an estimate must leave room for what it does not know
SEARCHED = ("data", "fsdp", "model", "seq")


class Candidate(NamedTuple):
    """A variant of a stage.

    Attributes:
        config: of the stage, with its mesh, rows, accumulation and remat policy.
        needed: bytes of one device, by estimate.
        seconds: of a step by estimate, if compute and network overlap.
        rows: times those of the config.
    """

    config: StageConfig
    needed: float
    seconds: float
    rows: float

    @property
    def mesh(self) -> dict[str, int]:
        return self.config.mesh

    @property
    def text(self) -> str:
        mesh = " x ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1) or "one device"
        return (f"mesh {mesh}, rows x{self.rows:g}, accumulate={self.config.accumulate}, "
                f"remat {self.config.model.lm.remat}: about {gib(self.needed)}")


class Search:
    """Estimates variants of a stage on a machine; nothing is traced but the parameters, once.

    Args:
        config: the stage.
        machine: where it is to run.
        costs: its operations, as `report.model_costs` gives them.
        factor: of what compiling the config as it is showed of activations, to what was estimated.
    """

    def __init__(self, config: StageConfig, machine: Machine, costs: Mapping[str, Cost], factor: float = 1.0):
        self._config, self._machine, self._costs, self._factor = config, machine, costs, factor
        mesh = AbstractMesh((1,) * len(AXES), AXES)
        self._plan: Plan = make_plan(models.build(config.system, config.model, config.low_rank), config, mesh)

    def nearest(self, mesh: Mapping[str, int]) -> Candidate | None:
        """The mesh closest to this one, in doublings, on which the config as it is would fit; None if there is none.

        If there is none, that on which it fits with its rows in the fewest parts that follow on each other.
        """
        def distance(candidate: Candidate) -> float:
            return sum(abs(math.log2(candidate.mesh[axis] / mesh.get(axis, 1))) for axis in SEARCHED)

        for accumulate in ACCUMULATE:
            if accumulate >= self._config.accumulate:
                near = min(self._fitting((1.0,), (self._config.model.lm.remat,), (accumulate,)), key=distance,
                           default=None)
                if near is not None:
                    return near
        return None

    def best(self, count: int) -> list[Candidate]:
        """The variants that would fit with the least time a row, at most one of each mesh."""
        found, meshes = [], set()
        for candidate in sorted(self._fitting(ROWS, REMAT, ACCUMULATE), key=lambda c: c.seconds / c.rows):
            key = tuple(candidate.mesh.items())
            if key not in meshes:
                meshes.add(key)
                found.append(candidate)
        return found[:count]

    def _fitting(self, rows: tuple[float, ...], remats: tuple[str, ...], accumulates: tuple[int, ...]
                 ) -> Iterator[Candidate]:
        for factor, remat, accumulate in itertools.product(rows, remats, accumulates):
            config = with_rows(with_remat(self._config, remat), factor)
            if config is None:
                continue
            config = dataclasses.replace(config, accumulate=accumulate)
            for sizes in meshes(len(self._machine.devices)):
                if self._divides(config, sizes):
                    candidate = self._estimate(config, sizes, factor)
                    if candidate.needed <= FILL * self._machine.chip.memory:
                        yield candidate

    def _divides(self, config: StageConfig, sizes: Mapping[str, int]) -> bool:
        row_parts = config.accumulate * math.prod(sizes[axis] for axis in RULES["batch"])
        if any(data.batch_size % row_parts or data.seq_len % sizes["seq"] for data in config.data.sets.values()):
            return False
        if any(sizes[axis] % parts for axis, parts in config.dcn.items()):
            return False
        leaves = jax.tree.leaves((self._plan.template.trainable, self._plan.template.frozen))
        return all(dim % memory.parts((entry,), sizes) == 0
                   for leaf in leaves for dim, entry in zip(leaf.shape, leaf.sharding.spec, strict=False))

    def _estimate(self, config: StageConfig, sizes: Mapping[str, int], rows: float) -> Candidate:
        groups = memory.of_state(self._plan.template, {}, sizes)
        needed = (sum(groups.values()) + memory.of_workspace(config, self._plan.template, sizes)
                  + self._factor * memory.of_activations(config, sizes))
        config = dataclasses.replace(config, mesh=dict(sizes))
        return Candidate(config, needed, max(self._compute(config, rows), self._network(config, sizes)), rows)

    def _compute(self, config: StageConfig, rows: float) -> float:
        again = config.model.lm.remat == "full"
        products = sum(c.forward * (1 + again * (c.backward > 0)) + c.backward for c in self._costs.values())
        operations = rows * (products + executed_attention(config.model, self._costs))
        return operations / len(self._machine.devices) / self._machine.chip.flops

    def _network(self, config: StageConfig, sizes: Mapping[str, int]) -> float:
        """Seconds of what must be sent: parameters gathered and gradients reduced, activations of split layers."""
        split, whole = _over_fsdp(self._plan.template.trainable, sizes)
        params = split / 2 + _over_fsdp(self._plan.template.frozen, sizes)[0]       # gathered in bfloat16
        batches = config.accumulate * len(config.data.sets)
        passes = (2 + (config.model.lm.remat == "full")) * batches
        lm = config.model.lm
        tokens = sum(data.batch_size * data.seq_len for data in config.data.sets.values())
        tokens /= math.prod(sizes[axis] for axis in (*RULES["batch"], "seq"))
        activations = 2 * tokens * lm.block.embed_dim * lm.num_layers
        sent = {
            "fsdp": passes * params + split * batches + 2 * whole,
            "data": 2 * (split / sizes["fsdp"] + whole),
            "model": 12 * activations,          # two sums of the residual stream in each of three passes
            "seq": 6 * activations,             # keys and values once round in each of three passes
        }
        return sum(size / self._bandwidth(axis, sizes) for axis, size in sent.items() if sizes[axis] > 1)

    def _bandwidth(self, axis: str, sizes: Mapping[str, int]) -> float:
        stride = math.prod(sizes[a] for a in AXES[AXES.index(axis) + 1:])
        return self._machine.bandwidth([stride * i for i in range(sizes[axis])])


def _over_fsdp(tree: Any, sizes: Mapping[str, int]) -> tuple[float, float]:
    """Bytes of the arrays that are split over `fsdp`, once gathered, and of those that lie whole along it."""
    split = whole = 0.0
    for leaf in jax.tree.leaves(tree):
        gathered = memory.of_arrays(leaf, sizes | {"fsdp": 1})
        if gathered > memory.of_arrays(leaf, sizes):
            split += gathered
        else:
            whole += gathered
    return split, whole


def meshes(num_devices: int) -> Iterator[dict[str, int]]:
    """All ways to lay devices over the axes data, fsdp, model and seq; the last two at most 64 and 16."""
    for model in _divisors(num_devices):
        for seq in _divisors(num_devices // model):
            if model <= 64 and seq <= 16:
                rest = num_devices // model // seq
                yield from (dict.fromkeys(AXES, 1) | dict(data=rest // fsdp, fsdp=fsdp, model=model, seq=seq)
                            for fsdp in _divisors(rest))


def with_remat(config: StageConfig, remat: str) -> StageConfig:
    """The stage with another policy in its language model."""
    model = dataclasses.replace(config.model, lm=dataclasses.replace(config.model.lm, remat=remat))
    return dataclasses.replace(config, model=model)


def with_rows(config: StageConfig, factor: float) -> StageConfig | None:
    """The stage with `factor` times the rows in every data set, or None if that is no whole number."""
    sets = {}
    for name, data in config.data.sets.items():
        rows = data.batch_size * factor
        if rows < 1 or rows != int(rows):
            return None
        sets[name] = dataclasses.replace(data, batch_size=int(rows))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sets=sets))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


