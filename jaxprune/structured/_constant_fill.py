"""Axes whose removed positions all hold one number that is not 0.

In the two-pass variance, ``mean((x - mean(x))**2)``, a removed channel adds
``mean(x)**2`` to the sum. The trace follows such numbers within one jaxpr, from the
zeros that they come from, and the replay adds them to the sum over the channels that
stay.
"""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn, Literal

from jaxprune.jaxpr import ELEMENTWISE
from jaxprune.structured._labels import Value

Filled = dict[Any, frozenset[int]]
"""For each variable of a jaxpr, the axes whose removed positions hold one number."""


def is_filled(atom: Any, value: Value, axis: int, filled: Filled) -> bool:
    """Tells whether an operand holds one number at all removed positions of an axis."""
    if axis >= len(value.labels) or len(value.labels[axis]) == 1:
        return True
    known = frozenset() if isinstance(atom, Literal) else filled.get(atom, frozenset())
    return value.zero(axis) or axis in known


def filled_axes(
    eqn: JaxprEqn, values: Sequence[Value], filled: Filled
) -> frozenset[int]:
    """Finds the axes along which the result of an equation is filled."""
    rank = len(eqn.outvars[0].aval.shape)  # pyright: ignore[reportAttributeAccessIssue]
    if eqn.primitive.name in ELEMENTWISE:
        pairs = list(zip(eqn.invars, values, strict=True))
        axes = range(rank)
        return frozenset(
            i for i in axes if all(is_filled(a, v, i, filled) for a, v in pairs)
        )
    if eqn.primitive.name == "broadcast_in_dim":
        return frozenset(_new_axes(eqn, values[0]))
    return frozenset()


def _new_axes(eqn: JaxprEqn, value: Value) -> list[int]:
    source = {int(o): i for i, o in enumerate(eqn.params["broadcast_dimensions"])}
    return [
        o
        for o in range(len(eqn.params["shape"]))
        if o not in source or len(value.labels[source[o]]) == 1
    ]
