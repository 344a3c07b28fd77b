"""What the text of a compiled program says: its loops, what devices tell each other, its traffic.

Pure functions of the text that ``as_text()`` of a compiled function gives, XLA's HLO after all of
its optimisations. A text is of one device: shapes are those of its own share.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.-]+)")
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|all-to-all|reduce-scatter|ragged-all-to-all|collective-[a-z]+)"
    r"(-start)?$"
)
_MOVES_NOTHING = frozenset(
    (
        *("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "conditional"),
        *("call", "after-all", "partition-id", "replica-id", "optimization-barrier"),
    )
)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array in memory.

    Attributes:
      dtype: as XLA writes it, such as ``"bf16"``.
      shape: its sides.
      is_near: whether it is in a memory of the chip itself, such as a TPU's VMEM.
    """

    dtype: str
    shape: tuple[int, ...]
    is_near: bool = False

    @property
    def elements(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What they take, without what a layout fills up."""
        return -(-self.elements * _bits(self.dtype) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as they are written.
      outputs: what it writes.
      operands: names of what it reads.
      rest: all that is written behind the opcode.
    """

    name: str
    opcode: str
    outputs: tuple[Buffer, ...]
    operands: tuple[str, ...]
    rest: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: the instructions of each, fused ones too.
      entry: the one that is run; loops in it run others.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """What is run: ``(computation, instruction, how often)``; what is fused is one."""
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations[name]:
            yield name, instruction, times
            often = times * (self.trips(instruction) or 1)
            for called in _called(instruction):
                yield from self._executed(called, often)

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop goes round; None where that is not known, and of everything else.

        The compiler says it, or the loop ends where its counter is no longer below a constant: all
        loops of JAX whose length is known count from 0.
        """
        if loop.opcode != "while":
            return None
        if said := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(said[1])
        condition = re.search(r"condition=%?([\w.-]+)", loop.rest)
        lines = self.computations[condition[1]] if condition else ()
        named = {line.name: line for line in lines}
        asks = lines[-1] if lines else None
        if asks is None or asks.opcode != "compare" or "direction=LT" not in asks.rest:
            return None
        counter, bound = (named.get(operand) for operand in asks.operands)
        if counter is None or bound is None or counter.opcode != "get-tuple-element":
            return None
        number = re.match(r"(\d+)\)", bound.rest)
        is_whole = bound.opcode == "constant" and bound.outputs[0].dtype in ("s32", "u32", "s64")
        return int(number[1]) if is_whole and number else None


def read(text: str) -> Program:
    """The text of a compiled program, taken apart.

    Raises:
      ValueError: for text in which there is no entry.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name = None, ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            name, lines = begins[1], []
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("}") and name:
            computations[name] = tuple(lines)
            name = ""
        elif name and (match := _INSTRUCTION.match(line)):
            lines.append(_instruction(match))
    if entry is None:
        raise ValueError("expected the text of a compiled program, got one without ENTRY")
    return Program(computations, entry)


def collectives(program: Program) -> list[str]:
    """The operations with which devices wait for each other, wherever they are."""
    matches = (
        _COLLECTIVE.match(instruction.opcode)
        for lines in program.computations.values()
        for instruction in lines
    )
    return [match[1] for match in matches if match]


def loops(program: Program) -> list[int | None]:
    """The trips of each loop that is run, one after another; None where they are not known."""
    return [program.trips(line) for _, line, _ in program.executed() if line.opcode == "while"]


def written(program: Program) -> Counter[Buffer]:
    """What is written to memory, and how often."""
    count: Counter[Buffer] = Counter()
    for _, line, times in program.executed():
        if line.opcode not in _MOVES_NOTHING:
            for buffer in line.outputs:
                count[buffer] += times
    return count


def traffic(program: Program) -> int:
    """Bytes that are read from and written to the device's memory, each whole buffer once an use.

    An upper bound: an operation that reads a part of a buffer is counted with all of it.
    """
    made = {
        (name, line.name): line for name, lines in program.computations.items() for line in lines
    }
    total = 0
    for name, line, times in program.executed():
        if line.opcode in _MOVES_NOTHING or line.opcode.endswith("-done"):
            continue
        read = (made[name, operand].outputs for operand in line.operands if (name, operand) in made)
        buffers = [*line.outputs, *(buffer for outputs in read for buffer in outputs)]
        total += times * sum(buffer.bytes for buffer in buffers if not buffer.is_near)
    return total


def cycles(program: Program) -> int | None:
    """Cycles that the compiler of TPUs expects all to take; None of others, which say nothing."""
    counts = [
        (int(said[1]), times)
        for _, line, times in program.executed()
        if (said := re.search(r'"estimated_cycles":"(\d+)"', line.rest))
    ]
    return sum(each * times for each, times in counts) if counts else None


def narrow(program: Program, opcode: str) -> int:
    """How many operations of this kind, fused ones too, give numbers of 16 bits."""
    return sum(
        line.opcode == opcode and any(b.dtype in ("bf16", "f16") for b in line.outputs)
        for lines in program.computations.values()
        for line in lines
    )


def of_shape(program: Program, shape: Sequence[int]) -> set[str]:
    """The dtypes of all arrays of these sides, fused ones too."""
    return {
        buffer.dtype
        for lines in program.computations.values()
        for line in lines
        for buffer in line.outputs
        if buffer.shape == tuple(shape)
    }


def _instruction(match: re.Match[str]) -> Instruction:
    name, types, opcode, rest = match.groups()
    outputs = tuple(_buffer(*array) for array in _ARRAY.findall(types))
    operands = tuple(_OPERAND.findall(rest[: _closing(rest)]))
    return Instruction(name, opcode, outputs, operands, rest)


def _buffer(dtype: str, sides: str, layout: str) -> Buffer:
    near = re.search(r"S\((\d+)\)", layout)
    shape = tuple(int(side) for side in sides.split(",") if side)
    return Buffer(dtype, shape, near is not None and near[1] != "0")


def _closing(text: str) -> int:
    """Where the parenthesis ends that was opened right before."""
    depth = 1
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return at
    return len(text)


def _bits(dtype: str) -> int:
    known = re.match(r"[a-z]+(\d+)", dtype)
    return int(known[1]) if known else 8  # a truth value has a byte


def _called(instruction: Instruction) -> list[str]:
    """What is run by it, and is not one operation with it."""
    if instruction.opcode == "while":
        return re.findall(r"(?:body|condition)=%?([\w.-]+)", instruction.rest)
    if instruction.opcode == "call":
        return re.findall(r"to_apply=%?([\w.-]+)", instruction.rest)
    if instruction.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        pair = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", instruction.rest)
        return [*pair, *(_OPERAND.findall(branches[1]) if branches else ())]
    return []
