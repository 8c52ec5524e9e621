"""Where arrays lie: a mask or a score lies where its parameter does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune import _checks, _host


def placed_like(array: jax.Array, leaf: Any) -> jax.Array:
    """Moves an array to the devices of a leaf of its shape, outside ``jit``.

    While tracing, the compiler decides, led by what the array is computed from.
    """
    if not isinstance(leaf, jax.Array) or not _checks.is_concrete((array, leaf)):
        return array
    same = array.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    return array if same else jax.device_put(array, leaf.sharding)


def all_true(leaf: Any) -> jax.Array:
    """A mask of a leaf's shape, where the leaf is, that keeps everything."""
    return _host.all_true(leaf) if _checks.on_host(leaf) else jnp.ones_like(leaf, bool)


def is_cut(sharding: NamedSharding) -> bool:
    """Tells of a type's sharding whether devices share the array: Explicit meshes."""
    return any(axis is not None for axis in sharding.spec)


def gathered(array: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The array whole on every device, and what lays another where it lay.

    Only on Explicit meshes, where its type tells; elsewhere the compiler decides.
    """
    sharding = jax.typeof(array).sharding
    if not is_cut(sharding):
        return array, lambda other: other
    whole = jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))
    return whole, lambda other: jax.sharding.reshard(other, sharding)
