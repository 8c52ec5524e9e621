"""Rules of the elementwise primitives."""

from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune.jaxpr import (
    ELEMENTWISE,
    PRODUCTS,
    QUOTIENTS,
    ZERO_PRESERVING_BINARY,
    ZERO_PRESERVING_UNARY,
    fold,
)
from jaxprune.structured._labels import (
    ONE,
    Fill,
    Value,
    either,
    is_zero,
    known,
)
from jaxprune.structured._trace import Trace, shape_of, unknown

_ZERO_PRESERVING = ZERO_PRESERVING_UNARY | ZERO_PRESERVING_BINARY


def _elementwise(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    met = _met(trace, eqn, values)
    fills = [
        _computed(eqn, [v.fill(i) for v in values]) for i in range(len(met.labels))
    ]
    number = _computed(
        eqn, [Fill.EVEN if v.number is None else v.number for v in values]
    )
    number = None if isinstance(number, Fill) else number
    return [met._replace(fills=tuple(fills), number=number)]


def _computed(eqn: JaxprEqn, fills: list[Any]) -> Any:
    """What an elementwise primitive makes of entries with these fills."""
    name = eqn.primitive.name
    zeros = [is_zero(fill) for fill in fills]
    if name == "select_n":
        return _selected(fills)
    if name in PRODUCTS and any(zeros):
        return 0
    if name in QUOTIENTS and zeros[0]:
        return 0  # If the divisor is 0 too, the masked model has a NaN there.
    if name in _ZERO_PRESERVING and all(zeros):
        return 0
    if not any(isinstance(fill, Fill) for fill in fills):
        found = fold(eqn, fills)
        return Fill.EVEN if found is None else found
    return min(map(known, fills))


def _selected(fills: list[Any]) -> Any:
    which, *cases = fills
    if not isinstance(which, Fill):
        return cases[int(which)]
    found = either(cases)
    return min(found, which) if isinstance(found, Fill) else found


def _bitcast(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,) = values
    if shape_of(eqn.invars[0]) != shape_of(eqn.outvars[0]):
        return unknown(trace, eqn, values)
    met = _met(trace, eqn, values)
    return [met._replace(fills=tuple(known(x.fill(i)) for i in range(len(met.labels))))]


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
    return Value(tuple(labels), (Fill.UNKNOWN,) * len(labels), weight)


def _ranked(values: list[Value], axis: int) -> list[Value]:
    return [v for v in values if len(v.labels) > axis]


RULES = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "bitcast_convert_type": _bitcast,
    "optimization_barrier": _identity,
}
