"""How the zeros of a mask travel: the density of a primitive's results."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
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


DENSE = Value(Fraction(1), None)  # Constants, whatever is not followed.
DATA = Value(Fraction(1), "data")  # Inputs that are not floats: indices, masks, keys.
ACTIVE = Value(Fraction(1), "active")  # Activations: dense, whatever scales them.
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
    if name in PRODUCTS | QUOTIENTS or name in ("select_n", "broadcast_in_dim"):
        values = [
            DENSE if v is ACTIVE and math.prod(shape_of(atom)) == 1 else v
            for v, atom in zip(values, eqn.invars, strict=True)
        ]  # One number treats all weights alike.
    if name in ("gather", "dynamic_slice") and {DATA, ACTIVE} & set(values[1:]):
        return [given(eqn.outvars[0].aval)]  # The data chooses among weights.
    if name == "convert_element_type" and values[0] is DATA:
        if _is_integer(eqn.invars[0]):  # Pixels, say; a mask would be of bools.
            return [given(eqn.outvars[0].aval)]
    if name in QUOTIENTS | {"select_n"} and ACTIVE in values:
        return [ACTIVE]
    if name in QUOTIENTS and values[0] in (DENSE, DATA):
        return [forgotten(values)]
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


def given(array: Any) -> Value:
    """Tells numbers from indices, masks and keys."""
    return ACTIVE if jnp.issubdtype(array.dtype, jnp.inexact) else DATA


def _is_integer(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.integer)


def forgotten(values: Sequence[Value]) -> Value:
    """The result of an operation that is not followed."""
    if ACTIVE in values:
        return ACTIVE
    if DATA in values:
        return ACTIVE if _weights(values) else DATA
    return DENSE


def contracted(values: Sequence[Value]) -> Value:
    """The result of a contraction."""
    return ACTIVE if DATA in values else forgotten(values)


def moved(values: Sequence[Value]) -> list[Value]:
    """Keeps the densities, but not the positions of the zeros."""
    return [Value(v.density, object()) if _weights([v]) else v for v in values]


def _weights(values: Sequence[Value]) -> list[Value]:
    """The values that are computed from weights, one for each support."""
    plain = (DENSE, DATA, ACTIVE, ZERO)
    return list({v.support: v for v in values if v not in plain}.values())


def _product(values: Sequence[Value]) -> Value:
    if ACTIVE in values:
        return ACTIVE
    if ZERO in values:
        return ZERO
    weights = _weights(values)
    if len(weights) <= 1:  # Data that multiplies weights is their mask.
        return weights[0] if weights else forgotten(values)
    density = math.prod((v.density for v in weights), start=Fraction(1))
    return Value(density, object())


def joined(values: Sequence[Value]) -> Value:
    """The result of an operation that is 0 where all of its operands are."""
    if ACTIVE in values:
        return ACTIVE
    weights = _weights(values)
    others = [v for v in values if v in (DENSE, DATA)]
    if not weights:
        return forgotten(others) if others else ZERO
    if len(weights) == 1 and not others:
        return weights[0]
    density = sum((v.density for v in (*weights, *others)), Fraction(0))
    return Value(min(Fraction(1), density), object())


def _mixed(values: Sequence[Value], sizes: Sequence[int]) -> Value:
    if ACTIVE in values or not _weights(values):
        return joined(values)
    filled = [v.density * size for v, size in zip(values, sizes, strict=True)]
    return Value(sum(filled, Fraction(0)) / max(sum(sizes), 1), object())


def shape_of(atom: Any) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())  # Tokens have none.
