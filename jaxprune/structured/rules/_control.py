"""Rules of the primitives that run other jaxprs."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune.jaxpr import (
    CALLS,
    read_branches,
    read_call,
    read_scan,
    read_while,
)
from jaxprune.structured._labels import Fill, Value, closed, either, same_number
from jaxprune.structured._trace import Entered, Trace


def _call(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    body = trace.walk(read_call(eqn), values)
    return Entered(body.outputs, (body,))


def _scan(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    scan = read_scan(eqn)
    consts, carry, xs = scan.split([closed(v) for v in values])
    for x in xs:
        trace.labels.freeze(x.labels[0], "scan runs along it")
    slices = [x._replace(labels=x.labels[1:], fills=x.fills[1:]) for x in xs]
    carry, body = _settled(trace, scan.body, consts, carry, slices)
    stacked = []
    for y in map(closed, body.outputs[scan.carry :]):
        along = trace.labels.frozen(scan.length, "scan stacks its results along it")
        fills = (Fill.UNKNOWN, *y.fills)
        stacked.append(y._replace(labels=(along, *y.labels), fills=fills))
    return Entered([*carry, *stacked], (body,))


def _while(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    loop = read_while(eqn)
    tests, consts, carry = loop.split([closed(v) for v in values])
    carry, body = _settled(trace, loop.body, consts, carry, [])
    test = trace.walk(loop.test, [*tests, *carry])
    return Entered(carry, (test, body))


def _settled(
    trace: Trace,
    body_jaxpr: Any,
    consts: Sequence[Value],
    carry: Sequence[Value],
    xs: Sequence[Value],
) -> tuple[list[Value], Any]:
    """Walks a loop's body until no more is forgotten about its carry."""
    carry = list(carry)
    while True:
        body = trace.walk(body_jaxpr, [*consts, *carry, *xs])
        after = []
        for before, found in zip(carry, body.outputs, strict=False):
            trace.join(before, found)
            after.append(_both(before, found))
        if all(a[1:] == b[1:] for a, b in zip(after, carry, strict=True)):
            return carry, body
        carry = after


def _cond(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    operands = [closed(v) for v in values[1:]]
    bodies = tuple(trace.walk(b, operands) for b in read_branches(eqn))
    outputs = [closed(out) for out in bodies[0].outputs]
    for body in bodies[1:]:
        for i, found in enumerate(body.outputs):
            trace.join(outputs[i], found)
            outputs[i] = _both(outputs[i], found)
    decided = values[0].weight
    outputs = [out._replace(weight=out.weight and decided) for out in outputs]
    return Entered(outputs, bodies)


def _both(left: Value, right: Value) -> Value:
    """What is known of an array that is one of two arrays with joined labels."""
    fills = tuple(either((left.fill(i), right.fill(i))) for i in range(len(left.fills)))
    number = same_number((left.number, right.number))
    weight = left.weight and right.weight
    return closed(Value(left.labels, fills, weight, number=number))


RULES = {
    **dict.fromkeys(CALLS, _call),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
