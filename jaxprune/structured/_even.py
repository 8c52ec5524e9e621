"""Arrays that hold one number wherever a position is removed, though it is not 0.

In the two-pass variance, mean((x - mean(x))²), a removed channel adds mean(x)² to the
sum. Within one jaxpr such numbers are followed from the zeros that they come from, so
the replay adds to the sum over what stays what the removed positions would have added.
"""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn, Literal

from jaxprune.structured._labels import Value

ELEMENTWISE: set[str] = set()
"""The names of the elementwise primitives, filled in by `_meets`."""

Even = dict[Any, frozenset[int]]
"""For variables of one jaxpr: along which axes removed positions hold one number."""


def is_even(atom: Any, value: Value, axis: int, even: Even) -> bool:
    """Tells whether an operand holds one number at all removed positions of an axis."""
    if axis >= len(value.labels) or len(value.labels[axis]) == 1:
        return True
    known = frozenset() if isinstance(atom, Literal) else even.get(atom, frozenset())
    return value.zero(axis) or axis in known


def even_axes(eqn: JaxprEqn, values: Sequence[Value], even: Even) -> frozenset[int]:
    """Finds the axes along which an equation's result is even."""
    rank = len(eqn.outvars[0].aval.shape)  # pyright: ignore[reportAttributeAccessIssue]
    if eqn.primitive.name in ELEMENTWISE:
        pairs = list(zip(eqn.invars, values, strict=True))
        axes = range(rank)
        return frozenset(
            i for i in axes if all(is_even(a, v, i, even) for a, v in pairs)
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
