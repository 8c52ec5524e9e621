"""Numbers and schedules, one for all leaves or one for each."""

from typing import Any

import jax

from jaxprune.core._per_leaf import is_tree
from jaxprune.transforms._keep_sparse import value_at
from jaxprune.transforms._state import narrowed


def values_at(values: Any, step: jax.Array, params: Any) -> Any:
    """Evaluates a schedule, or a tree of them, narrowed to the leaves of ``params``."""
    if not is_tree(values):
        return value_at(values, step)
    return jax.tree.map(lambda value: value_at(value, step), narrowed(values, params))
