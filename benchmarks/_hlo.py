"""What a compiled program sends between devices, read from its optimised HLO text."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16, "token": 0}  # The others end in their width.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$"
)
_CALLED = re.compile(
    r"(calls|to_apply|condition|body|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)"
)
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One kind of transfer of one element type, over the whole run of a program.

    Attributes:
      kind: one of `KINDS`.
      dtype: of what is sent, in XLA's words: "pred" is a mask's.
      calls: how often it is called.
      bytes: what a device puts in or takes out, whichever is more, over all calls.
    """

    kind: str
    dtype: str
    calls: int
    bytes: int


def collectives(text: str, *, turns: int) -> list[Collective]:
    """Adds up the collectives of a program, those in loops once a turn.

    Both sides of a conditional count. A loop turns as often as XLA knows it to; one
    that goes on while a flag in its state is set turns once, which is how jaxprune
    writes work that is due on some steps; any other turns ``turns`` times.

    Args:
      text: ``compiled.as_text()``.
      turns: the most that a loop of unknown length turns.

    Returns:
      The transfers by kind and type, in the order of their names.
    """
    computations, entry = _parsed(text)
    calls: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()

    def visit(name: str, times: int) -> None:
        lines = computations[name]
        types = {line[0]: line[1] for line in lines}
        for _, result, op, rest in lines:
            kind = op.removesuffix("-done")
            if kind in KINDS:
                operands = re.findall(r"%([\w.\-]+)", rest.split(")")[0])
                sent = [types[o] for o in operands if o in types]
                # A done's operand is its start, whose type holds both sides.
                put = 0 if op != kind else sum(map(_bytes, sent))
                key = kind, _SHAPE.findall(result)[0][0]
                calls[key] += times
                sizes[key] += times * max(put, _bytes(result))
            inner = times
            if op == "while":
                inner = times * _turns(rest, computations, turns)
            for role, names in _CALLED.findall(rest):
                for called in re.findall(r"[\w.\-]+", names):
                    if (called in computations and role != "to_apply") or op == "call":
                        visit(called, inner)

    visit(entry, 1)
    return [Collective(*key, calls[key], sizes[key]) for key in sorted(calls)]


def total(found: Sequence[Collective], kind: str | None = None) -> int:
    """The bytes of all transfers, or of one kind."""
    return sum(c.bytes for c in found if kind is None or c.kind == kind)


def _parsed(text: str) -> tuple[dict[str, list[Any]], str]:
    """The instructions (name, type, operation, rest) of each computation."""
    computations: dict[str, list[Any]] = {}
    current, entry = [], ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            current.append(instruction.groups())
    return computations, entry


def _turns(rest: str, computations: dict[str, list[Any]], turns: int) -> int:
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    lines = computations[condition[1]] if condition else []
    flag = bool(lines) and lines[-1][2] in ("get-tuple-element", "copy")
    return 1 if flag else turns


def _bytes(type_: str) -> int:
    """The size of a type: an array, or the sum of a tuple's."""
    size = 0
    for dtype, dims in _SHAPE.findall(type_):
        digits = re.match(r"[a-z]+(\d+)", dtype)
        bits = _BITS.get(dtype, int(digits[1]) if digits else 0)
        size += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return size
