"""Puts masks and scores on the devices of their parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.core import _checks

_LARGE = 2**22  # Arrays from this size on are not copied.


def shard_like(array: jax.Array, leaf: Any) -> jax.Array:
    """Moves an array to the devices of a leaf of its shape, outside ``jit``.

    While tracing, it does nothing: the compiler follows the operands' shardings.
    """
    if not isinstance(leaf, jax.Array) or not _checks.is_concrete((array, leaf)):
        return array
    same = array.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    return array if same else jax.device_put(array, leaf.sharding)


def placed(leaves: Sequence[Any], arrays: Sequence[np.ndarray]) -> list[jax.Array]:
    """Puts NumPy arrays on the devices of leaves, and gives them the leaves' shapes."""
    results = []
    for leaf, array in zip(leaves, arrays, strict=True):
        array = jnp.array(array.reshape(np.shape(leaf)))
        pinned = isinstance(leaf, jax.Array) and leaf.committed
        results.append(jax.device_put(array, leaf.sharding) if pinned else array)
    return results


def all_true(leaf: Any) -> jax.Array:
    """Returns a mask of all True with the shape and devices of a leaf."""
    if _checks.on_host(leaf):
        return placed([leaf], [np.ones(np.shape(leaf), bool)])[0]
    return jnp.ones_like(leaf, bool)


def is_cut(sharding: NamedSharding) -> bool:
    """Returns whether a type's sharding splits the array, as Explicit meshes state."""
    return any(axis is not None for axis in sharding.spec)


def uncut(sharding: NamedSharding) -> NamedSharding:
    """The sharding of an array that every device of the mesh holds whole."""
    return NamedSharding(sharding.mesh, PartitionSpec())


def replicate(array: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Replicates an array and returns a function that restores its sharding.

    This is for Explicit meshes only; elsewhere the compiler decides.
    """
    sharding = jax.typeof(array).sharding
    if not is_cut(sharding):
        return array, lambda other: other
    whole = jax.sharding.reshard(array, uncut(sharding))
    return whole, lambda other: jax.sharding.reshard(other, sharding)


def large_or_shared(array: jax.Array) -> bool:
    """Returns whether an array should not be copied or packed with others.

    An array whose type names no mesh is assumed to be on one device. If it is not, the
    result is the same, but the array is gathered.
    """
    return (
        array.size >= _LARGE
        or most_shards(array) > 1
        or any(axis is not None for axis in spec_of(array))
    )


def most_shards(array: jax.Array) -> int:
    """Returns the most shards that an axis may be split into on a mesh of Auto axes."""
    mesh = jax.typeof(array).sharding.mesh
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return math.prod(mesh.shape[name] for name, kind in axes if kind == AxisType.Auto)


def spec_of(array: jax.Array) -> tuple[Any, ...]:
    """Lists a name, names or None for every axis, known on Explicit meshes only."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))
