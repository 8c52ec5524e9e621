"""Arrays cut out of one vector by kernels that arrays of equal shapes share."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def cut(
    vector: jax.Array, starts: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> list[jax.Array]:
    """Cuts arrays out of a vector, with one kernel for all that have the same shape.

    A slice at a known place is a kernel of its own, which takes as long to compile. So
    barriers hide from XLA where each slice starts, and keep other work out of it.
    """
    vector = jax.lax.optimization_barrier(vector)
    indices = jax.lax.optimization_barrier([jnp.uint32(start) for start in starts])
    parts = [
        jax.lax.reshape(jax.lax.dynamic_slice(vector, [i], [math.prod(shape)]), shape)
        for i, shape in zip(indices, shapes, strict=True)
    ]
    return jax.lax.optimization_barrier(parts)


def entries(array: jax.Array) -> list[jax.Array]:
    """Cuts an array into its entries along the leading axis."""
    shape = array.shape[1:]
    starts = [i * math.prod(shape) for i in range(len(array))]
    return cut(array.reshape(-1), starts, [shape] * len(array))
