"""A state as a list of arrays, what is known of each, and whether they are sound."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.scale._programs import State


def facts(state: State) -> list[dict[str, Any]]:
    return [
        {
            "path": jax.tree_util.keystr(path, simple=True, separator="/"),
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def arrays_of(state: State) -> list[jax.Array]:
    """The leaves, keys as their words."""
    leaves = jax.tree.leaves(state)
    return [jax.random.key_data(x) if _is_key(x) else x for x in leaves]


def array_shapes(shapes: State) -> list[jax.ShapeDtypeStruct]:
    """Those of `arrays_of`, with shardings."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        if not _is_key(leaf):
            return leaf
        words = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)

    return [one(leaf) for leaf in jax.tree.leaves(shapes)]


def impl(leaf: jax.Array) -> str | None:
    """What kind of key a key is."""
    return str(jax.random.key_impl(leaf)) if _is_key(leaf) else None


def state_of(
    arrays: list[jax.Array], leaves: list[dict[str, Any]], shapes: State
) -> State:
    """The inverse of `arrays_of`."""
    found = [
        jax.random.wrap_key_data(array, impl=leaf["impl"]) if leaf["impl"] else array
        for array, leaf in zip(arrays, leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


@jax.jit
def fingerprints(arrays: list[jax.Array]) -> jax.Array:
    r"""Of each leaf with words w: :math:`\sum_i w_i (2 i + 1) \bmod 2^{32}`.

    Every factor is odd, so a change of any one word shows; and integers add up to the
    same in any order, so on any mesh.
    """
    return jnp.stack([_fingerprint(array) for array in arrays])


def _fingerprint(array: jax.Array) -> jax.Array:
    if array.dtype != jnp.bool_:
        width = min(array.dtype.itemsize, 4)
        array = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * width}"))
    strides = np.cumprod([1, *array.shape[:0:-1]])[::-1]
    index = sum(
        (
            jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
            * jnp.uint32(int(stride) % 2**32)
            for axis, stride in enumerate(strides[: array.ndim])
        ),
        start=jnp.zeros(array.shape, jnp.uint32),
    )
    words = array.astype(jnp.uint32)
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


@jax.jit
def unmasked(state: State) -> jax.Array:
    """How many weights are not 0 though the mask in the optimizer's state prunes."""
    mask = jp.get_mask(state.opt_state, state.params)
    wrong = jax.tree.map(lambda p, m: jnp.sum((p != 0) & ~m), state.params, mask)
    return jnp.sum(jnp.stack(jax.tree.leaves(wrong)))
