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
from jaxprune.structured._labels import Value
from jaxprune.structured._trace import Entered, Trace


def _call(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    body = trace.walk(read_call(eqn), values)
    return Entered(body.outputs, (body,))


def _scan(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    scan = read_scan(eqn)
    consts, carry, xs = scan.split(values)
    for x in xs:
        trace.labels.freeze(x.labels[0], "scan runs along it")
    slices = [x._replace(labels=x.labels[1:], zeros=x.zeros[1:]) for x in xs]
    carry, body = _settled(trace, scan.body, consts, carry, slices)
    stacked = []
    for y in body.outputs[scan.carry :]:
        along = trace.labels.frozen(scan.length, "scan stacks its results along it")
        zeros = (False, *y.zeros)
        stacked.append(y._replace(labels=(along, *y.labels), zeros=zeros))
    return Entered([*carry, *stacked], (body,))


def _while(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    loop = read_while(eqn)
    tests, consts, carry = loop.split(values)
    carry, body = _settled(trace, loop.body, consts, carry, [])
    test = trace.walk(loop.test, [*tests, *carry])
    return Entered(carry, (test, body))


def _settled(
    trace: Trace,
    closed: Any,
    consts: Sequence[Value],
    carry: Sequence[Value],
    xs: Sequence[Value],
) -> tuple[list[Value], Any]:
    """Walks a loop's body until no more is forgotten about its carry."""
    carry = list(carry)
    while True:
        body = trace.walk(closed, [*consts, *carry, *xs])
        after = []
        for before, found in zip(carry, body.outputs, strict=False):
            trace.join(before, found)
            after.append(_both(before, found))
        if all(
            a.zeros == b.zeros and a[2:] == b[2:]
            for a, b in zip(after, carry, strict=True)
        ):
            return carry, body
        carry = after


def _cond(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    bodies = tuple(trace.walk(b, values[1:]) for b in read_branches(eqn))
    outputs = list(bodies[0].outputs)
    for body in bodies[1:]:
        for i, found in enumerate(body.outputs):
            trace.join(outputs[i], found)
            outputs[i] = _both(outputs[i], found)
    decided = values[0].weight
    outputs = [out._replace(weight=out.weight and decided) for out in outputs]
    return Entered(outputs, bodies)


def _both(left: Value, right: Value) -> Value:
    """What is known of an array that is one of two arrays with joined labels."""
    zeros = tuple(left.zero(i) and right.zero(i) for i in range(len(left.zeros)))
    return Value(
        left.labels, zeros, left.weight and right.weight, left.nil and right.nil
    )


RULES = {
    **dict.fromkeys(CALLS, _call),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
