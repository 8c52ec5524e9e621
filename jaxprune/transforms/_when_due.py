"""Work that is done on some steps only and costs nothing on the others."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.core import _checks


def when_due(due: jax.Array, fn: Callable[[Any], Any], value: Any) -> Any:
    """Returns ``fn(value)`` where due, else ``value``.

    A ``while_loop`` runs at most once, with a ``cond`` in its body. The loop updates
    ``value`` in place, whereas a ``cond`` alone would copy it in both branches. The
    ``cond`` keeps work that does not depend on ``value`` inside the loop: XLA would
    otherwise move it out and run it on every step.

    Under ``vmap``, a ``cond`` with a batched flag becomes a select, which always does
    the work. So loop and ``cond`` test one unbatched flag, True if any lane is due, and
    each lane then selects by its own flag.
    """

    def body(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        first, value = carry
        in_lane = functools.partial(jax.lax.cond, due, fn, _same)
        return jnp.zeros_like(first), jax.lax.cond(first, in_lane, _same, value)

    start = (_in_any_lane(due), value)
    return jax.lax.while_loop(lambda carry: carry[0], body, start)[1]


def _same(value: Any) -> Any:
    return value


@jax.custom_batching.custom_vmap
def _in_any_lane(flag: jax.Array) -> jax.Array:
    """Returns the flag; under ``vmap``, whether the flag of any lane is True."""
    return flag


@_in_any_lane.def_vmap
def _over_lanes(
    axis_size: int, in_batched: list[bool], flags: jax.Array
) -> tuple[jax.Array, bool]:
    del axis_size, in_batched  # The flags have a leading axis whenever this is called.
    return _in_any_lane(jnp.any(flags, axis=0)), False


def check_window(every: int | jax.Array, until: int | jax.Array) -> None:
    """Raises if a known ``until``, other than 0, comes before the first due update."""
    known = not isinstance(every, Tracer) and not isinstance(until, Tracer)
    if known and 0 < until < every:
        raise ValueError(
            f"until={until} comes before the first mask update, update {every} "
            f"(every={every}), so the mask would never change. Pass until >= every, or "
            "None for no limit."
        )


def due_updates(
    every: int | jax.Array, until: int | jax.Array | None, *, least: int
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from the number of an update to whether it is due.

    Args:
      every: the period in updates, at least ``least``.
      until: the last update that may be due, or None.
      least: the shortest period allowed.
    """
    _checks.check_count(every, "every", "updates", least=least)
    if until is None:
        return lambda step: step % every == 0
    _checks.check_count(until, "until", "updates", least=0)
    check_window(every, until)
    return lambda step: (step % every == 0) & (step <= until)
