"""Reads HLO text: computations, their instructions, the types of these."""

import re
from typing import NamedTuple

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "token": 0, "opaque": 0}       # others from the digits: f32 -> 4

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|called_computations|true_computation|"
                     r"false_computation)=\{?((?:%[\w.\-]+(?:, )?)+)\}?")


class Instruction(NamedTuple):
    """One line of HLO: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """Computations it runs, but for the condition of a loop."""
        return [name for names in _CALLED.findall(self.attributes) for name in re.findall(r"%([\w.\-]+)", names)]


Computation = dict[str, Instruction]


def sizes(kind: str) -> list[tuple[float, str]]:
    """(bytes, layout) of every array of a type, tuples too."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(kind):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        found.append((_itemsize(dtype) * count, layout))
    return found


def _itemsize(dtype: str) -> float:
    if dtype in BYTES:
        return BYTES[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) / 8 if digits else 0


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the name of the first to run."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            if found := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
                current = computations[found[2]] = {}
                entry = found[2] if found[1] else entry
            continue
        if current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    head, equals, rest = re.sub(r"/\*.*?\*/", "", line).strip().partition(" = ")
    if not equals:
        return None
    kind, rest = _split_type(rest)
    opcode, _, rest = rest.partition("(")
    operands, attributes = _closing(rest)
    is_literal = opcode in ("constant", "parameter")
    names = (operands,) if is_literal else tuple(re.findall(r"%([\w.\-]+)", operands))
    name = head.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, kind, opcode, names, attributes, head.startswith("ROOT "))


def _split_type(text: str) -> tuple[str, str]:
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    inside, rest = _closing(text[1:])
    return f"({inside})", rest.lstrip()


def _closing(text: str) -> tuple[str, str]:
    """(what stands before the parenthesis that closes, what stands after it)."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return text[:found.start()], text[found.end():]
    return text, ""
