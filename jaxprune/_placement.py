"""Where arrays lie: a mask or a score lies where its parameter does."""

from typing import Any

import jax

from jaxprune import _checks


def placed_like(array: jax.Array, leaf: Any) -> jax.Array:
    """Moves an array to the devices of a leaf of its shape, outside ``jit``.

    While tracing, the compiler decides, led by what the array is computed from.
    """
    if not isinstance(leaf, jax.Array) or not _checks.is_concrete((array, leaf)):
        return array
    same = array.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    return array if same else jax.device_put(array, leaf.sharding)
