"""Rules of the elementwise primitives."""

from jax.extend.core import JaxprEqn

from jaxprune.jaxpr import (
    PRODUCTS,
    QUOTIENTS,
    ZERO_FORGETTING,
    ZERO_PRESERVING_BINARY,
    ZERO_PRESERVING_UNARY,
)
from jaxprune.structured._labels import ONE, Value
from jaxprune.structured._trace import Trace, shape_of, unknown


def _keeping(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    met = _met(trace, eqn, values)
    zeros = [all(v.zero(i) for v in _ranked(values, i)) for i in range(len(met.zeros))]
    scalars_zero = all(v.nil for v in values if not v.labels)
    zeros = tuple(z and scalars_zero for z in zeros)
    return [met._replace(zeros=zeros, nil=all(v.nil for v in values))]


def _products(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    met = _met(trace, eqn, values)
    zeros = tuple(
        any(v.zero(i) for v in _ranked(values, i)) for i in range(len(met.zeros))
    )
    return [met._replace(zeros=zeros, nil=any(v.nil for v in values))]


def _quotient(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    # If the divisor of a removed position is 0 too, the masked model has a NaN there.
    met, top = _met(trace, eqn, values), values[0]
    zeros = tuple(bool(top.labels) and top.zero(i) for i in range(len(met.zeros)))
    return [met._replace(zeros=zeros, nil=top.nil)]


def _integer_pow(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return (_keeping if eqn.params["y"] > 0 else _forgetting)(trace, eqn, values)


def _select(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    met = _met(trace, eqn, values)
    cases = values[1:]
    zeros = tuple(all(v.zero(i) for v in cases) for i in range(len(met.zeros)))
    return [met._replace(zeros=zeros, nil=all(v.nil for v in cases))]


def _forgetting(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return [_met(trace, eqn, values)]


def _bitcast(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    if shape_of(eqn.invars[0]) != shape_of(eqn.outvars[0]):
        return unknown(trace, eqn, values)
    return _forgetting(trace, eqn, values)


def _identity(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    del trace, eqn
    return values


def _met(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Value:
    """Joins, axis by axis, the labels of arrays of one shape (ones are broadcast)."""
    labels = []
    for i in range(len(shape_of(eqn.outvars[0]))):
        rows = [v.labels[i] for v in _ranked(values, i) if len(v.labels[i]) != 1]
        if not rows:
            labels.append(ONE)
            continue
        for row in rows[1:]:
            trace.labels.join(rows[0], row)
        owned = [row for row in rows if row.size and row[0] < trace.owned]
        labels.append((owned or rows)[0])  # A parameter's own labels say what it is.
    weight = all(v.weight for v in values)
    return Value(tuple(labels), (False,) * len(labels), weight)


def _ranked(values: list[Value], axis: int) -> list[Value]:
    return [v for v in values if len(v.labels) > axis]


RULES = {
    **dict.fromkeys(ZERO_PRESERVING_UNARY, _keeping),
    **dict.fromkeys(ZERO_PRESERVING_BINARY, _keeping),
    **dict.fromkeys(PRODUCTS, _products),
    **dict.fromkeys(QUOTIENTS, _quotient),
    **dict.fromkeys(ZERO_FORGETTING, _forgetting),
    "bitcast_convert_type": _bitcast,
    "integer_pow": _integer_pow,
    "optimization_barrier": _identity,
    "select_n": _select,
}
