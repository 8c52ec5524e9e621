"""How the zeros of a mask travel: the density of a primitive's results."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn

from jaxprune.jaxpr._primitives import (
    PRODUCTS,
    QUOTIENTS,
    ZERO_PRESERVING_BINARY,
    ZERO_PRESERVING_UNARY,
)


class Value(NamedTuple):
    """The density of the weights that a variable is computed from.

    Values with the same support (compared by identity) are zero at the same entries.
    """

    density: Fraction
    support: object


DENSE = Value(
    Fraction(1), None
)  # Constants, masks, and everything that is not followed.
ACTIVE = Value(
    Fraction(1), "active"
)  # Activations: dense, even when scaled by weights.
ZERO = Value(Fraction(1), "zero")  # A constant 0: harmless in a sum or a selection.

# They keep the zeros of their first operand.
_KEEPING = ZERO_PRESERVING_UNARY | QUOTIENTS | {"optimization_barrier"}
# These move, repeat or select entries of their first operand: its density stays.
_MOVING = set(
    "all_gather all_gather_invariant all_to_all broadcast_in_dim dynamic_slice "
    "expand_dims gather pad ppermute reshape rev slice split squeeze tile transpose "
    "unstack".split()
)
# An entry of the result is 0 if it is 0 in all operands.
_JOINING = ZERO_PRESERVING_BINARY | {"select_n"}


def densities(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Follows densities through a primitive that is neither contraction nor call."""
    name, count = eqn.primitive.name, len(eqn.outvars)
    if name in PRODUCTS or name == "broadcast_in_dim":
        values = [
            DENSE if v is ACTIVE and math.prod(shape_of(atom)) == 1 else v
            for v, atom in zip(values, eqn.invars, strict=True)
        ]  # One number scales all weights alike.
    if name in _KEEPING or (name == "integer_pow" and eqn.params["y"] > 0):
        return values if len(values) == count else values[:1] * count
    if name == "pad" and values[1] is not ZERO:
        return [forgotten(values[:1])]
    if name in _MOVING:
        return moved(values[:1] * count)
    if name in PRODUCTS:
        return [_product(values)]
    if name in _JOINING:
        return [joined(values[1:] if name == "select_n" else values)]
    if name in ("concatenate", "stack"):
        return [_mixed(values, [math.prod(shape_of(v)) for v in eqn.invars])]
    return [forgotten(values)] * count


def forgotten(values: Sequence[Value]) -> Value:
    """The result of an operation that is not followed."""
    return ACTIVE if ACTIVE in values else DENSE


def moved(values: Sequence[Value]) -> list[Value]:
    """Keeps the densities, but not the positions of the zeros."""
    plain = (DENSE, ACTIVE, ZERO)
    return [v if v in plain else Value(v.density, object()) for v in values]


def _product(values: Sequence[Value]) -> Value:
    if ACTIVE in values:
        return ACTIVE
    distinct = list({v.support: v for v in values if v is not DENSE}.values())
    if len(distinct) <= 1:
        return distinct[0] if distinct else DENSE
    density = math.prod((v.density for v in distinct), start=Fraction(1))
    return Value(density, object())


def joined(values: Sequence[Value]) -> Value:
    if ACTIVE in values:
        return ACTIVE
    distinct = list({v.support: v for v in values if v is not ZERO}.values())
    if len(distinct) <= 1:
        return distinct[0] if distinct else ZERO
    density = sum((v.density for v in distinct), Fraction(0))
    return Value(min(Fraction(1), density), object())


def _mixed(values: Sequence[Value], sizes: Sequence[int]) -> Value:
    if all(v is ZERO for v in values) or not sum(sizes):
        return values[0]
    if all(v is ACTIVE for v in values):
        return ACTIVE
    filled = [v.density * size for v, size in zip(values, sizes, strict=True)]
    return Value(sum(filled, Fraction(0)) / sum(sizes), object())


def shape_of(atom: Any) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())  # Tokens have none.
