"""Evaluates elementwise primitives on known numbers, with NumPy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "atan2": np.arctan2,
    "ceil": np.ceil,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "convert_element_type": lambda x: x,
    "copy": lambda x: x,
    "cos": np.cos,
    "cosh": np.cosh,
    "div": np.divide,
    "eq": np.equal,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}


def fold(eqn: JaxprEqn, operands: Sequence[Any]) -> Any:
    """Evaluates an equation on one number per operand.

    Returns:
      A NumPy scalar of the equation's dtype; None if it is not known, or NaN.
    """
    name = eqn.primitive.name
    if name not in _FUNCTIONS and name != "integer_pow":
        return None
    kinds = [atom.aval.dtype for atom in eqn.invars]  # pyright: ignore[reportAttributeAccessIssue]
    dtype = eqn.outvars[0].aval.dtype  # pyright: ignore[reportAttributeAccessIssue]
    numbers = [np.asarray(x, kind) for x, kind in zip(operands, kinds, strict=True)]
    if name == "integer_pow":
        numbers.append(np.asarray(eqn.params["y"], dtype))
    with np.errstate(all="ignore"):
        found = _FUNCTIONS.get(name, np.power)(*numbers)
    if not np.isfinite(found) and not np.issubdtype(dtype, np.inexact):
        return None  # A whole number divided by 0.
    found = np.asarray(found).astype(dtype)[()]
    return None if found != found else found
