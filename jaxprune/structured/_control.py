"""Rules of the primitives that run jaxprs of their own: they are entered."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import Value
from jaxprune.structured._moves import rule
from jaxprune.structured._trace import Entered, Trace, unknown


@rule("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint")
def _call(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if inner is None:
        return unknown(trace, eqn, values)
    body = trace.walk(inner, values)
    return Entered(body.outputs, (body,))


@rule("scan")
def _scan(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    first, count = eqn.params["num_consts"], eqn.params["num_carry"]
    last = first + count
    consts, carry, xs = values[:first], values[first:last], values[last:]
    for x in xs:
        trace.labels.freeze(x.labels[0], "scan runs along it")
    slices = [x._replace(labels=x.labels[1:], zeros=x.zeros[1:]) for x in xs]
    carry, body = _settled(trace, eqn.params["jaxpr"], consts, carry, slices)
    length = eqn.params["length"]
    stacked = []
    for y in body.outputs[count:]:
        along = trace.labels.frozen(length, "scan stacks its results along it")
        zeros = (False, *y.zeros)
        stacked.append(y._replace(labels=(along, *y.labels), zeros=zeros))
    return Entered([*carry, *stacked], (body,))


@rule("while")
def _while(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    first = eqn.params["cond_nconsts"]
    last = first + eqn.params["body_nconsts"]
    tests, consts, carry = values[:first], values[first:last], values[last:]
    carry, body = _settled(trace, eqn.params["body_jaxpr"], consts, carry, [])
    test = trace.walk(eqn.params["cond_jaxpr"], [*tests, *carry])
    return Entered(carry, (test, body))


def _settled(
    trace: Trace,
    closed: Any,
    consts: Sequence[Value],
    carry: Sequence[Value],
    xs: Sequence[Value],
) -> tuple[list[Value], Any]:
    """Walks a loop's body until what is known of the carry holds after it as before."""
    carry = list(carry)
    while True:
        body = trace.walk(closed, [*consts, *carry, *xs])
        after = []
        for before, found in zip(carry, body.outputs, strict=False):
            join(trace, before, found)
            after.append(_both(before, found))
        if all(
            a.zeros == b.zeros and a[2:] == b[2:]
            for a, b in zip(after, carry, strict=True)
        ):
            return carry, body
        carry = after


@rule("cond")
def _cond(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    bodies = tuple(trace.walk(b, values[1:]) for b in eqn.params["branches"])
    outputs = list(bodies[0].outputs)
    for body in bodies[1:]:
        for i, found in enumerate(body.outputs):
            join(trace, outputs[i], found)
            outputs[i] = _both(outputs[i], found)
    decided = values[0].weight
    outputs = [out._replace(weight=out.weight and decided) for out in outputs]
    return Entered(outputs, bodies)


def join(trace: Trace, left: Value, right: Value) -> None:
    """Joins two arrays of one shape."""
    for a, b in zip(left.labels, right.labels, strict=True):
        trace.labels.join(a, b)


def _both(left: Value, right: Value) -> Value:
    """What is known of an array that is one of two; their labels are joined."""
    zeros = tuple(left.zero(i) and right.zero(i) for i in range(len(left.zeros)))
    return Value(
        left.labels, zeros, left.weight and right.weight, left.nil and right.nil
    )
