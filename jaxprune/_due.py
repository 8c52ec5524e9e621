"""Work that is due on some steps only, and costs nothing on the others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def when_due(due: jax.Array, fn: Callable[..., Any], value: Any, *args: Any) -> Any:
    """Returns ``fn(value, *args)`` where due, else ``value``.

    Under ``vmap`` a batched predicate turns ``lax.cond`` into a select that always does
    the work. Here the branch is entered only if any lane is due, and inside it each
    lane chooses by its own flag.
    """

    def branch(value: Any, *args: Any) -> Any:
        new = fn(value, *args)
        return jax.tree.map(lambda n, old: jnp.where(due, n, old), new, value)

    return jax.lax.cond(_any_lane(due), branch, lambda value, *_: value, value, *args)


@jax.custom_batching.custom_vmap
def _any_lane(flag: jax.Array) -> jax.Array:
    """The flag itself; under ``vmap`` whether it holds in any lane, not batched."""
    return flag


@_any_lane.def_vmap
def _(
    axis_size: int, in_batched: list[bool], flag: jax.Array
) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return _any_lane(jnp.any(flag, axis=0)), False
