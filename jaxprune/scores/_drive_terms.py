"""The options of DRIVE, and the normalization of its terms."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Real


def check_drive(weights: tuple[Real, Real, Real], normalize: str, combine: str) -> None:
    """Raises unless the options of `drive` are valid."""
    three = np.shape(weights) == (3,)
    if not three or not all(w >= 0 for w in weights) or not any(weights):
        raise ValueError(
            "weights must be three non-negative numbers, not all 0, for |θ|, |θ g| and "
            f"|g|; got {weights}."
        )
    if normalize not in ("sum", "mean", "rank", "none"):
        raise ValueError(
            f"normalize must be 'sum', 'mean', 'rank' or 'none'; got {normalize!r}. "
            "Each term of DRIVE is divided by its sum or mean over the prunable "
            "weights that are not 0, or replaced by its rank among them."
        )
    if combine not in ("sum", "product"):
        raise ValueError(
            f"combine must be 'sum' or 'product', how DRIVE combines its terms; got "
            f"{combine!r}."
        )


def normalized(tree: Any, counted: Sequence[jax.Array | None], how: str) -> Any:
    """Divides a term by its sum or mean, or replaces it by its ranks.

    Args:
      tree: the term, a tree of non-negative arrays.
      counted: for each leaf a bool array of the weights that count, or None for none.
      how: the argument ``normalize`` of `drive`.
    """
    leaves, structure = jax.tree.flatten(tree)
    rows = [(x, c) for x, c in zip(leaves, counted, strict=True) if c is not None]
    if how == "rank":
        return structure.unflatten(map(_ranking(rows), leaves))
    if how == "none":
        return tree
    scale = sum(jnp.sum(jnp.where(c, x, jnp.zeros_like(x))) for x, c in rows)
    if how == "mean":
        size = sum(jnp.sum(c.astype(x.dtype)) for x, c in rows)
        scale = scale / jnp.maximum(size, 1)
    inverse = jnp.where(scale > 0, 1 / scale, jnp.zeros_like(scale))
    return jax.tree.map(lambda x: inverse.astype(x.dtype) * x, tree)


def _ranking(
    rows: list[tuple[jax.Array, jax.Array]],
) -> Callable[[jax.Array], jax.Array]:
    """Builds the distribution function of a term from (values, which of them count)."""
    dtype = jnp.result_type(*[x for x, _ in rows])
    values = [jnp.where(s, x, jnp.inf).astype(dtype).ravel() for x, s in rows]
    ordered = jnp.sort(jnp.concatenate(values))
    size = functools.reduce(jnp.add, [jnp.sum(s, dtype=jnp.int32) for _, s in rows])

    def rank(x: jax.Array) -> jax.Array:
        below = jnp.searchsorted(ordered, x.astype(dtype).ravel(), side="right")
        share = jnp.minimum(below, size).astype(x.dtype)
        share = share / jnp.maximum(size, 1).astype(x.dtype)
        # Make the share depend on the leaf, so that it inherits the leaf's sharding.
        return jnp.where(x == x, share.reshape(x.shape), x)

    return rank
