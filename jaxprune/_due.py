"""Work that is due on some steps only, and costs nothing on the others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def when_due(due: jax.Array, fn: Callable[[Any], Any], value: Any) -> Any:
    """Returns ``fn(value)`` where due, else ``value``.

    A loop of one turn or none. Under ``vmap``, ``lax.cond`` with a batched flag becomes
    a select that always does the work; a loop is entered only if it is due in any lane,
    and in it each lane chooses by its own flag. And a loop carries ``value`` in place,
    where both branches of a ``cond`` would write it anew.
    """

    def turn(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        due, value = carry
        return jnp.zeros_like(due), fn(value)

    return jax.lax.while_loop(lambda carry: carry[0], turn, (due, value))[1]


def check_window(every: int, until: int) -> None:
    """Raises if ``until`` comes before the first update that is due."""
    if until < every:
        raise ValueError(
            f"until={until} comes before the first due update, number every={every}: "
            "the mask would never change. Pass until >= every, or None for no end."
        )
