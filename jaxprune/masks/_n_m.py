"""N:M sparsity: the best n of every m weights along an axis."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune._types import Mask, Prunable, Scores
from jaxprune.core import _checks
from jaxprune.core._axes import FLAX, Axes, axes_of, numbered
from jaxprune.core._dtypes import precision_of
from jaxprune.core._per_leaf import per_leaf
from jaxprune.core._placement import all_true, shard_like
from jaxprune.core._prunable import matrices
from jaxprune.masks._rows import as_rows
from jaxprune.masks._threshold import check_scores


def n_m_mask(
    scores: Scores,
    n: PyTree[int | jax.Array],
    m: int,
    *,
    axis: Axes = FLAX,
    prunable: Prunable = matrices,
) -> Mask:
    """Keeps the ``n`` best of every ``m`` consecutive inputs of an output.

    2:4 is the pattern of sparse tensor cores. Of equal scores the first in the group
    are kept; NaN ranks below -inf.

    Args:
      scores: a tree of floating arrays, larger = keep.
      n: weights kept in each group, in [0, m]; it may be traced. Also a tree of numbers
        with the structure of ``scores``.
      m: weights in a group, at least 1.
      axis: the input axes, which are divided into groups together, the last axis
        fastest: an axis or several for all leaves, a mapping from paths to axes, as
        `input_axes` returns, or a tree of axes; leaves without an entry are kept whole.
        "flax" stands for the input axes of Flax's dense, convolution and attention
        kernels; any other leaf of rank three or more is an error.
      prunable: which leaves to prune; the remaining leaves are kept whole. Use
        `divisible_by` to keep leaves dense whose inputs are not a multiple of ``m``.

    Returns:
      A mask with the structure, shapes and sharding of ``scores``.

    Raises:
      ValueError: if ``n > m``, the input axes of a prunable leaf are unknown or not a
        multiple of ``m``, nothing is prunable, or, outside ``jit``, a score is NaN.
      TypeError: if a leaf is not floating, ``m`` is traced, or an axis is not an
        integer.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> scores = jnp.array([[4.0], [1.0], [2.0], [3.0]])
      >>> jp.n_m_mask(scores, 2, 4)[:, 0]
      Array([ True, False, False,  True], dtype=bool)
    """
    flags = check_scores(scores, prunable, None)
    leaves, structure = jax.tree.flatten(scores)
    masks = []
    for path, leaf, kept, axes in zip(
        _checks.leaf_paths(scores),
        leaves,
        per_leaf(n, scores, "n"),
        axes_of(axis, scores, flags),
        strict=True,
    ):
        kept, m = _checks.check_group(kept, m)
        if axes is None:
            masks.append(all_true(leaf))
        else:
            masks.append(_best_of_leaf(path, leaf, kept, m, axes))
    return jax.tree.unflatten(structure, masks)


def _best_of_leaf(path: str, leaf: Any, n: Any, m: int, axes: Any) -> jax.Array:
    own = numbered(axes, path, leaf.shape)
    if leaf.shape[own[-1]] % m == 0:  # No group is cut by the end of the last axis.
        return shard_like(best_of_groups(jnp.asarray(leaf), n, m, own[-1]), leaf)
    entries = math.prod(leaf.shape[i] for i in own)
    if entries % m:
        raise ValueError(
            f"The leaf {path} of shape {leaf.shape} has {entries} entries along axis "
            f"{axes}, not a multiple of m={m}. To keep such leaves dense, pass "
            f"prunable=jp.divisible_by({m})."
        )
    rows, restore = as_rows(leaf, own)
    return restore(best_of_groups(rows, n, m, 1))


@jax.jit(static_argnums=(2, 3))
def best_of_groups(
    scores: jax.Array, n: int | jax.Array, m: int, axis: int
) -> jax.Array:
    """Marks the ``n`` largest of every ``m`` consecutive entries along an axis."""
    with precision_of(scores):
        return _best_by_rank(scores, n, m, axis % scores.ndim)


def _best_by_rank(
    scores: jax.Array, n: int | jax.Array, m: int, axis: int
) -> jax.Array:
    """Ranks each weight in its group by comparing it with all m weights."""
    shape = (
        *scores.shape[:axis],
        scores.shape[axis] // m,
        m,
        *scores.shape[axis + 1 :],
    )
    groups = scores.reshape(shape)
    index = jax.lax.broadcasted_iota(jnp.int32, shape, axis + 1)
    rank = jnp.zeros_like(groups, dtype=jnp.int32)
    for j in range(m):
        other = jax.lax.slice_in_dim(groups, j, j + 1, axis=axis + 1)
        missing, other_missing = groups != groups, other != other
        ahead = (other > groups) | (missing & ~other_missing)
        tied = (other == groups) | (missing & other_missing)
        rank = rank + (ahead | (tied & (j < index))).astype(jnp.int32)
    return (rank < n).reshape(scores.shape)
