"""Rules of functions with a custom derivative: value and derivative are followed.

A tangent or cotangent has the labels of its primal. A cotangent is not assumed to be 0
at removed positions, because that depends on how the output is used.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.jaxpr import (
    CUSTOM_DERIVATIVES,
    read_call,
    read_custom_consts,
    read_jvp,
)
from jaxprune.structured._labels import Fill, Value, closed
from jaxprune.structured._trace import Body, Entered, Trace


class Tangents(NamedTuple):
    """The walked derivative rule of a `custom_jvp`.

    Attributes:
      body: ``(*primals, *tangents) -> (*outputs, *tangents)``, only those that exist.
      fixed: which of the primals have no tangent.
      still: which of the outputs have none.
    """

    body: Body
    fixed: list[bool]
    still: list[bool]


class Pullback(NamedTuple):
    """The walked derivative rules of a `custom_vjp`.

    Attributes:
      forward: ``(*primals) -> (*outputs, *residuals)``.
      backward: ``(*residuals, *cotangents) -> (*cotangents)``, only those that exist.
      fixed: which of the primals have no cotangent.
      still: which of the outputs have none.
    """

    forward: Body
    backward: Body
    fixed: list[bool]
    still: list[bool]


def _custom(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Any:
    values = [closed(v) for v in values]
    body = trace.walk(read_call(eqn), values)
    outputs = [closed(out) for out in body.outputs]
    if trace.derives:  # A rule may call its own function; follow it once.
        trace.derives = False
        derivative(trace, eqn, values, outputs)
        trace.derives = True
    return Entered(outputs, (body,))


def derivative(
    trace: Trace, eqn: JaxprEqn, values: Sequence[Value], outputs: Sequence[Value]
) -> Any:
    """Walks the derivative rule of an equation: `Tangents` or `Pullback`."""
    constants = read_custom_consts(eqn)
    primals, atoms = [closed(v) for v in values[constants:]], eqn.invars[constants:]
    fixed = [not _is_differentiable(atom) for atom in atoms]
    if eqn.primitive.name == "custom_jvp_call":
        return _tangents(trace, eqn, primals, fixed, outputs)
    return _pullback(trace, eqn, primals, fixed, outputs)


def _is_differentiable(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def _tangents(
    trace: Trace,
    eqn: JaxprEqn,
    primals: Sequence[Value],
    fixed: list[bool],
    outputs: Sequence[Value],
) -> Tangents:
    rule_jaxpr, still = read_jvp(eqn, fixed)
    body = trace.walk(rule_jaxpr, [*primals, *_without(primals, fixed)])
    _join_all(trace, body.outputs, [*outputs, *_without(outputs, still)])
    return Tangents(body, fixed, still)


def _pullback(
    trace: Trace,
    eqn: JaxprEqn,
    primals: Sequence[Value],
    fixed: list[bool],
    outputs: Sequence[Value],
) -> Pullback:
    still = [not _is_differentiable(atom) for atom in eqn.outvars]
    forward, backward = _pullback_jaxprs(eqn, fixed, still)
    there = trace.walk(forward, primals)
    _join_all(trace, there.outputs[: len(outputs)], outputs)
    cotangents = [_unknown_zeros(value) for value in _without(outputs, still)]
    residuals = [closed(v) for v in there.outputs[len(outputs) :]]
    back = trace.walk(backward, [*residuals, *cotangents])
    _join_all(trace, back.outputs, _without(primals, fixed))
    return Pullback(there, back, fixed, still)


def _pullback_jaxprs(
    eqn: JaxprEqn, fixed: list[bool], still: list[bool]
) -> tuple[Any, Any]:
    """The two rules as jaxprs at full size; residuals connect them."""
    constants = read_custom_consts(eqn)
    kinds: list[Any] = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
    given, kinds = kinds[:constants], kinds[constants:]
    avals, results = kinds[: len(fixed)], kinds[len(fixed) :]
    pulls = []

    def forward(*primals: Any) -> Any:
        moving = [i for i, stays in enumerate(fixed) if not stays]

        def run(*moved: Any) -> Any:
            args = list(primals)
            for i, arg in zip(moving, moved, strict=True):
                args[i] = arg
            consts = [jnp.zeros(a.shape, a.dtype) for a in given]  # No rule reads them.
            params = eqn.primitive.get_bind_params(eqn.params)
            return eqn.primitive.bind(*consts, *args, **params)

        outputs, pull = jax.vjp(run, *(primals[i] for i in moving))
        residuals, structure = jax.tree.flatten(pull)
        pulls.append(structure)
        return outputs, residuals

    def backward(residuals: Any, rates: Any) -> Any:
        rates = iter(rates)
        cotangents = [
            np.zeros(aval.shape, jax.dtypes.float0) if stays else next(rates)
            for aval, stays in zip(results, still, strict=True)
        ]
        return jax.tree.unflatten(pulls[-1], residuals)(cotangents)

    there, (outputs, residuals) = jax.make_jaxpr(forward, return_shape=True)(*avals)
    back = jax.make_jaxpr(backward)(residuals, _without(outputs, still))
    return there, back


def _unknown_zeros(value: Value) -> Value:
    return Value(value.labels, (Fill.UNKNOWN,) * len(value.labels))


def _join_all(trace: Trace, found: Sequence[Value], wanted: Sequence[Value]) -> None:
    for one, other in zip(found, wanted, strict=True):
        trace.join(one, other)


def _without(items: Sequence[Any], dropped: Sequence[bool]) -> list[Any]:
    return [item for item, drop in zip(items, dropped, strict=True) if not drop]


RULES = {
    **dict.fromkeys(CUSTOM_DERIVATIVES, _custom),
}
