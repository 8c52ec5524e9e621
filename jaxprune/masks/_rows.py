"""Masks that compare scores only within each output of a layer."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune._types import Mask, Numeric, Prunable, Scores
from jaxprune.core import _checks, _uint64
from jaxprune.core._axes import FLAX, Axes, axes_of, numbered
from jaxprune.core._per_leaf import is_tree
from jaxprune.core._placement import all_true, replicate, shard_like
from jaxprune.core._prunable import matrices
from jaxprune.core._uint64 import Wide
from jaxprune.masks import _host
from jaxprune.masks._selection import best_of_all
from jaxprune.masks._threshold import broadcast_sparsity, check_scores


def row_mask(
    scores: Scores,
    sparsity: PyTree[Numeric],
    *,
    axis: Axes = FLAX,
    prunable: Prunable = matrices,
) -> Mask:
    """Keeps the best-scoring weights of each output, the same number in each.

    Of the n weights of an output exactly ``round(sparsity * n)`` are removed. Of equal
    scores the first are kept; NaN ranks below -inf.

    Args:
      scores: a tree of floating arrays, larger = keep.
      sparsity: fraction of each row removed, in [0, 1), a Python number, or a tree of
        numbers with the structure of ``scores``, such as `sparsities` returns.
      axis: the input axes, which together form the row of an output: an axis or several
        for all leaves, a mapping from paths to axes, as `input_axes` returns, or a tree
        of axes; leaves without an entry are kept whole. "flax" stands for the input
        axes of Flax's dense, convolution and attention kernels; any other leaf of rank
        three or more is an error.
      prunable: which leaves to prune; the remaining leaves are kept whole.

    Returns:
      A mask with the structure, shapes and sharding of ``scores``. On an Explicit mesh
      sharded leaves are gathered, one at a time.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1) or its tree does not match, the input
        axes of a leaf are unknown, nothing is prunable, or, outside ``jit``, a score is
        NaN.
      TypeError: if a leaf is not floating, ``sparsity`` is traced, or an axis is not an
        integer.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> scores = {"w": jnp.array([[1.0, 9.0], [2.0, 8.0]])}
      >>> jp.row_mask(scores, 0.5)
      {'w': Array([[False,  True],
             [ True, False]], dtype=bool)}

    References:
      Sun et al., `A Simple and Effective Pruning Approach for Large Language Models
      <https://arxiv.org/abs/2306.11695>`_, ICLR 2024, Section 3.
    """
    flags = check_scores(scores, prunable, None)
    if not is_tree(sparsity):
        _checks.check_sparsity(sparsity)
    given = iter(broadcast_sparsity(sparsity, scores, flags))
    leaves, structure = jax.tree.flatten(scores)
    masks = []
    for path, leaf, flag, axes in zip(
        _checks.leaf_paths(scores),
        leaves,
        flags,
        axes_of(axis, scores, flags),
        strict=True,
    ):
        share = next(given) if flag else 0.0
        share = _checks.static_sparsity(share, "row_mask", "sparsity")
        if axes is None:
            masks.append(all_true(leaf))
            continue
        rows, restore = as_rows(leaf, numbered(axes, path, leaf.shape))
        keep = rows.shape[1] - round(share * rows.shape[1])
        masks.append(restore(_best_of_rows(rows, _uint64.wide(keep))))
    return jax.tree.unflatten(structure, masks)


def as_rows(
    leaf: Any, axes: tuple[int, ...]
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """A leaf as a matrix with a row per output, and a function that goes back."""
    order = [*(i for i in range(leaf.ndim) if i not in axes), *axes]
    whole, placed = replicate(leaf)
    moved = jnp.transpose(whole, order)
    rows = moved.reshape(-1, math.prod(leaf.shape[i] for i in axes))

    def restore(mask: jax.Array) -> jax.Array:
        back = [order.index(i) for i in range(leaf.ndim)]
        mask = jnp.transpose(mask.reshape(moved.shape), back)
        return shard_like(placed(mask), leaf)

    return rows, restore


def _best_of_rows(rows: jax.Array, keep: Wide) -> jax.Array:
    return (
        _host.best_of_rows(rows, keep) if _checks.on_host(rows) else _each(rows, keep)
    )


@jax.jit
def _each(rows: jax.Array, keep: Wide) -> jax.Array:
    return jax.vmap(lambda row: best_of_all([row], keep)[0])(rows)
