"""Reads the parameters of equations that run other jaxprs, in every supported JAX.

Only this file names parameters of ``scan``, ``while``, ``cond``, ``shard_map``, calls
and functions with a custom derivative.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.extend.core import Jaxpr, JaxprEqn

# Since jax 0.11 one type is both, and the second name may be removed.
ClosedJaxpr: Any = getattr(core, "ClosedJaxpr", Jaxpr)


CALLS = frozenset("jit pjit closed_call core_call remat2 checkpoint".split())
CHECKPOINTS = frozenset(("remat2", "checkpoint"))
CUSTOM_DERIVATIVES = frozenset(("custom_jvp_call", "custom_vjp_call"))


class Scan(NamedTuple):
    """A ``scan``: its body maps (consts, carry, slices) to (carry, slices)."""

    body: Any
    consts: int
    carry: int
    length: int
    reverse: bool
    unroll: Any

    def split(self, args: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Splits the operands into constants, carry and stacked inputs."""
        return _split(args, self.consts, self.carry)


def read_scan(eqn: JaxprEqn) -> Scan:
    """Reads a ``scan`` equation."""
    at = eqn.params
    if "num_consts" in at:
        consts, carry = at["num_consts"], at["num_carry"]
    else:  # Since jax 0.11.
        consts, carry, _ = map(len, at["ft_in"].unpack())
    return Scan(at["jaxpr"], consts, carry, at["length"], at["reverse"], at["unroll"])


class While(NamedTuple):
    """A ``while``: ``test(test_consts, carry)`` and ``body(body_consts, carry)``."""

    test: Any
    body: Any
    test_consts: int
    body_consts: int

    def split(self, args: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Splits the operands into the test's constants, the body's, and the carry."""
        return _split(args, self.test_consts, self.body_consts)


def read_while(eqn: JaxprEqn) -> While:
    """Reads a ``while`` equation."""
    at = eqn.params
    return While(
        at["cond_jaxpr"], at["body_jaxpr"], at["cond_nconsts"], at["body_nconsts"]
    )


def read_branches(eqn: JaxprEqn) -> tuple[Any, ...]:
    """Reads the branches of a ``cond`` equation, whose first operand picks one."""
    return eqn.params["branches"]


def read_call(eqn: JaxprEqn) -> Any:
    """Reads the jaxpr of a call, or of a function with a custom derivative."""
    at = eqn.params
    return at["call_jaxpr"] if "call_jaxpr" in at else at["jaxpr"]


def read_custom_consts(eqn: JaxprEqn) -> int:
    """Counts the leading operands that the custom derivative does not receive."""
    return eqn.params["num_consts"]


def read_jvp(eqn: JaxprEqn, fixed: Sequence[bool]) -> tuple[Any, list[bool]]:
    """Reads the derivative rule of a ``custom_jvp`` function.

    Args:
      eqn: the equation.
      fixed: which of its primals have no tangent.

    Returns:
      The rule's jaxpr, and which of the outputs have no tangent.
    """
    jaxpr, consts, still = eqn.params["jvp_jaxpr_fun"].call_wrapped(*fixed)
    return ClosedJaxpr(jaxpr, consts), list(still)


def read_manual_axes(eqn: JaxprEqn) -> Any:
    """Reads the mesh axes that a ``shard_map`` splits its work over."""
    at, new = eqn.params, "newly_manual_axes"
    return at[new if new in at else "manual_axes"]  # As in jax 0.10.0.


def open_jaxpr(jaxpr: Any) -> tuple[Jaxpr, list[Any]]:
    """Returns a jaxpr and the values of its constants.

    Since jax 0.11 a jaxpr holds its constants; before, a closed jaxpr wrapped both.
    """
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, list(jaxpr.consts)
    return jaxpr, []


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """Finds the jaxprs that an equation runs, for any primitive."""
    params: Any = list(eqn.params.values())
    if eqn.primitive.name == "custom_linear_solve":
        params = eqn.params["jaxprs"].solve  # The rest are for its derivatives.
    found = jax.tree.leaves(params)
    return [open_jaxpr(f)[0] for f in found if isinstance(f, Jaxpr | ClosedJaxpr)]


def _split(
    args: Sequence[Any], first: int, second: int
) -> tuple[list[Any], list[Any], list[Any]]:
    last = first + second
    return list(args[:first]), list(args[first:last]), list(args[last:])
