"""Slices of a vector, with one compiled kernel per shape."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def cut(
    vector: jax.Array, starts: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> list[jax.Array]:
    """Slices arrays out of a vector, with one kernel for all of the same shape.

    XLA compiles a separate kernel for each slice whose start is known. Barriers hide
    the starts, and keep XLA from fusing other work into the slices.
    """
    vector = jax.lax.optimization_barrier(vector)
    indices = jax.lax.optimization_barrier([jnp.uint32(start) for start in starts])
    parts = [
        jax.lax.reshape(jax.lax.dynamic_slice(vector, [i], [math.prod(shape)]), shape)
        for i, shape in zip(indices, shapes, strict=True)
    ]
    return jax.lax.optimization_barrier(parts)


def entries(array: jax.Array) -> list[jax.Array]:
    """Splits an array into its entries along the leading axis."""
    shape = array.shape[1:]
    starts = [i * math.prod(shape) for i in range(len(array))]
    return cut(array.reshape(-1), starts, [shape] * len(array))
