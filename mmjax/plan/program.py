"""Reads a compiled program: what runs how often, what passes through memory, and what goes over the network.

The compiler's own cost analysis counts the body of a loop once, and nothing at all on GPUs. Here every computation has
the number of times it runs, from the trip counts that XLA writes beside its loops.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.plan import hlo
from mmjax.plan.hlo import Computation, Instruction

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
               "collective-broadcast")
# These move no data by themselves.
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all",
        "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "domain", "iota"}
SLICES = ("dynamic-slice", "gather", "slice")

class Collective(NamedTuple):
    """A kind of exchange between devices, all of a step together.

    Attributes:
        kind: as HLO names it.
        axes: mesh axes along which the devices of a group differ.
        group: devices of one group, partition numbers.
        count: how often it runs in a step.
        bytes: what it reads on one device, in a step.
        sent: what one device sends in a step, by a ring.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    count: float
    bytes: float
    sent: float


class Program:
    """A compiled module.

    Args:
        text: of `compiled.as_text()`.
        has_fast_memory: whether memory space 1 is on the chip, as on TPUs.

    Attributes:
        num_instructions: of all its computations.
        unknown_loops: loops whose number of rounds only the data says; they count as one round.
    """

    def __init__(self, text: str, has_fast_memory: bool = False):
        self._computations, self._entry = hlo.parse(text)
        self._has_fast_memory = has_fast_memory
        self.unknown_loops = 0
        self._runs: dict[str, float] = defaultdict(float)
        self._visit(self._entry, 1.0)
        self.num_instructions = sum(map(len, self._computations.values()))

    def _visit(self, name: str, times: float) -> None:
        self._runs[name] += times
        for instruction in self._computations[name].values():
            if instruction.opcode in ("while", "call", "conditional", "async-start"):
                rounds = self._rounds(instruction) if instruction.opcode == "while" else 1
                for called in instruction.called:
                    self._visit(called, times * rounds)

    def _rounds(self, loop: Instruction) -> int:
        if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)[1]
        names = [condition, *(c for i in self._computations[condition].values() for c in i.called)]
        limits = {i.operands[0] for name in names for i in self._computations[name].values()
                  if i.opcode == "constant" and i.type.startswith(("s32[]", "s64[]", "u32[]"))}
        limits -= {"0", "1", "true", "false"}
        if len(limits) == 1:
            return int(limits.pop())
        self.unknown_loops += 1
        return 1

    # Network.

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """Every kind and axis once, the largest first; `mesh` has the sizes of the axes in order."""
        found: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        groups: dict[tuple, tuple[int, ...]] = {}
        for name, times in self._runs.items():
            for instruction, home in self._with_fused(name):
                kind = instruction.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    read = sum(self._size(home[o].type) for o in instruction.operands if o in home)
                    group, axes = _group(instruction.attributes, mesh)
                    key = kind, axes, len(group)
                    groups.setdefault(key, group)
                    for i, value in enumerate((1.0, read, _sent(kind, read, len(group)))):
                        found[key][i] += times * value
        rows = [Collective(*key[:2], groups[key], *totals) for key, totals in found.items() if key[2] > 1]
        return sorted(rows, key=lambda row: -row.sent)

    def _with_fused(self, name: str) -> Iterator[tuple[Instruction, Computation]]:
        """The instructions of a computation and of those fused into it, with what holds their operands."""
        computation = self._computations[name]
        for instruction in computation.values():
            yield instruction, computation
            if instruction.opcode == "fusion":
                for called in instruction.called:
                    yield from self._with_fused(called)

    # Memory.

    def memory_traffic(self) -> float:
        """Bytes that one device reads from and writes to its main memory in a step.

        What is fused stays on the chip; of an array from which a slice is taken, or in which one is replaced, the slice
        counts. What a kernel reads twice counts once.
        """
        return sum(times * sum(self._traffic(i, self._computations[name])
                               for i in self._computations[name].values())
                   for name, times in self._runs.items())

    def _traffic(self, instruction: Instruction, home: Computation) -> float:
        opcode = instruction.opcode
        if opcode in FREE or opcode.endswith("-done"):
            return 0.0
        if opcode == "fusion":
            return self._fusion_traffic(instruction, home)
        if opcode in SLICES:
            return 2 * self._size(instruction.type, everywhere=False)
        reads = [self._size(home[o].type, everywhere=False) if o in home else 0.0 for o in instruction.operands]
        if opcode == "dynamic-update-slice":
            return 2 * reads[1]
        if opcode == "scatter":
            return sum(reads[1:]) + reads[-1]
        if opcode in ("copy-start", "slice-start"):         # its type has the source in it, too
            return min(2 * sum(reads), self._size(instruction.type, everywhere=False))
        if opcode.endswith("-start"):
            return sum(reads)
        return sum(reads) + self._size(instruction.type, everywhere=False)

    def _fusion_traffic(self, fusion: Instruction, home: Computation) -> float:
        body = self._computations[fusion.called[0]]
        users = defaultdict(list)
        for instruction in body.values():
            for operand in instruction.operands:
                users[operand].append(instruction)
        reads = 0.0
        for instruction in body.values():
            if instruction.opcode == "parameter":
                operand = fusion.operands[int(instruction.operands[0])]
                full = self._size(home[operand].type, everywhere=False) if operand in home else 0.0
                reads += min(full, self._part_read(instruction.name, users, body))
        root = next(i for i in body.values() if i.is_root)
        outputs = [body[o] for o in root.operands] if root.opcode == "tuple" else [root]
        if any(out.opcode == "dynamic-update-slice" for out in outputs):
            return reads + sum(self._size(body[out.operands[1]].type if out.opcode == "dynamic-update-slice"
                                          else out.type, everywhere=False) for out in outputs)
        return reads + self._size(fusion.type, everywhere=False)

    def _part_read(self, name: str, users: Mapping[str, list[Instruction]], body: Computation) -> float:
        """Bytes of a fusion's parameter that it reads, if only slices of it; otherwise infinite."""
        total = 0.0
        for user in users[name]:
            if user.opcode in SLICES and user.operands[0] == name:
                total += self._size(user.type)
            elif user.opcode == "bitcast":
                total += self._part_read(user.name, users, body)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return math.inf
        return total

    def _size(self, text: str, everywhere: bool = True) -> float:
        """Bytes of a type, tuples too; with `everywhere` False, of what is in main memory."""
        return sum(size for size, layout in hlo.sizes(text)
                   if everywhere or not self._has_fast_memory or "S(1)" not in layout)


def _sent(kind: str, read: float, group: int) -> float:
    """Bytes that one device sends when it reads `read`, by a ring of `group` devices."""
    others = (group - 1) / group
    return {"all-gather": group * others, "all-reduce": 2 * others, "collective-permute": 1.0}.get(kind, others) * read


def _group(attributes: str, mesh: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The first group of devices of a collective, and the mesh axes along which its members differ."""
    sizes = tuple(mesh.values())
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        pairs = np.array(json.loads("[" + found[1].replace("{", "[").replace("}", "]") + "]"))
        a, b = (np.stack(np.unravel_index(ids, sizes)) for ids in pairs.T)
        return tuple(int(i) for i in pairs[0]), _axes(mesh, (a != b).any(1))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        group = np.array([int(i) for i in found[1].split(",")])
    elif found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        group = _counted(found[3], found[4]).reshape(int(found[1]), -1)[0]
    elif found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? ?\{([^}]*)\}", attributes):
        group = _mesh_group(found[1], found[2] or "", found[3])
    else:
        group = np.arange(math.prod(sizes))         # an empty list of groups is one of all devices
    coordinates = np.stack(np.unravel_index(group, sizes))
    return tuple(int(i) for i in group), _axes(mesh, (coordinates != coordinates[:, :1]).any(1))


def _counted(dims: str, order: str | None) -> np.ndarray:
    """0, 1, ... laid out as `dims` and turned to `order`, both lists in text."""
    sizes = [int(d) for d in dims.split(",")]
    return np.arange(math.prod(sizes)).reshape(sizes).transpose([int(d) for d in order.split(",")] if order else None)


def _mesh_group(axes: str, device_ids: str, chosen: str) -> np.ndarray:
    """The first group of `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}`; part of an axis is 'a':(stride)size."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    if found := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids):
        ids = _counted(found[1], found[2])
    elif device_ids:
        ids = np.array([int(i) for i in device_ids.split(",")])
    else:
        ids = np.arange(math.prod(sizes.values()))
    ids = ids.reshape(tuple(sizes.values()))
    group = ids
    for dim, (name, size) in enumerate(sizes.items()):
        part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?(?=[,}}]|$)", chosen)
        if part is None:
            index = slice(0, 1)
        elif part[1] is None:
            index = slice(None)
        else:
            stride = size // (int(part[1]) * int(part[2]))
            index = slice(0, stride * int(part[2]), stride)
        group = group[(slice(None),) * dim + (index,)]
    return group.reshape(-1)


def _axes(mesh: Mapping[str, int], differs: Sequence[bool]) -> tuple[str, ...]:
    return tuple(name for name, d in zip(mesh, differs, strict=True) if d)
