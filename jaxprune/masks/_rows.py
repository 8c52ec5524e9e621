"""Masks that compare scores only within each output of a layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Prunable, Real, Scores
from jaxprune.core import _checks, _uint64
from jaxprune.core._placement import all_true, replicate, shard_like
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.core._uint64 import Wide
from jaxprune.masks import _host
from jaxprune.masks._selection import best_of_all


def row_mask(
    scores: Scores,
    sparsity: Real,
    *,
    axis: int | Sequence[int] | Mapping[str, Sequence[int]] = -2,
    prunable: Prunable = matrices,
) -> Mask:
    """Keeps the best-scoring weights of each output, the same number in each.

    Of the n weights of an output exactly ``round(sparsity * n)`` are removed. Of equal
    scores the first are kept; NaN ranks below -inf.

    Args:
      scores: a tree of floating arrays, larger = keep.
      sparsity: fraction of each row removed, in [0, 1), a Python number.
      axis: the input axes, which together form the row of an output: an axis or several
        for all leaves, or a mapping from paths to axes, as `input_axes` returns. Leaves
        that a mapping does not name are kept whole. -2 is the input axis of Flax's
        dense kernels.
      prunable: which leaves to prune; the remaining leaves are kept whole.

    Returns:
      A mask with the structure, shapes and sharding of ``scores``. On an Explicit mesh
      sharded leaves are gathered, one at a time.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1), a leaf lacks an axis, nothing is
        prunable, or, outside ``jit``, a score is NaN.
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
    _checks.check_floating(scores, "scores")
    _checks.check_no_nans(scores, "scores")
    _checks.check_sparsity(sparsity)
    sparsity = _checks.static_sparsity(sparsity, "row_mask", "sparsity")
    flags = select_prunable(scores, prunable)
    leaves, structure = jax.tree.flatten(scores)
    masks = []
    paths = _checks.leaf_paths(scores)
    if isinstance(axis, Mapping):
        flags = _named(axis, paths, flags)
    for path, leaf, flag in zip(paths, leaves, flags, strict=True):
        if not flag:
            masks.append(all_true(leaf))
            continue
        axes = _axes(axis, path, leaf)
        order = [*(i for i in range(leaf.ndim) if i not in axes), *axes]
        whole, restore = replicate(leaf)
        moved = jnp.transpose(whole, order)
        size = math.prod(leaf.shape[i] for i in axes)
        keep = size - round(sparsity * size)
        mask = _best_of_rows(moved.reshape(-1, size), _uint64.wide(keep))
        mask = mask.reshape(moved.shape)
        back = [order.index(i) for i in range(leaf.ndim)]
        masks.append(shard_like(restore(jnp.transpose(mask, back)), leaf))
    return jax.tree.unflatten(structure, masks)


def _best_of_rows(rows: jax.Array, keep: Wide) -> jax.Array:
    return (
        _host.best_of_rows(rows, keep) if _checks.on_host(rows) else _each(rows, keep)
    )


@jax.jit
def _each(rows: jax.Array, keep: Wide) -> jax.Array:
    return jax.vmap(lambda row: best_of_all([row], keep)[0])(rows)


def _named(
    axis: Mapping[str, Any], paths: Sequence[str], flags: Sequence[bool]
) -> list[bool]:
    """The prunable leaves that a mapping names; raises if it names no leaf."""
    unknown = [path for path in axis if path not in paths]
    named = [path in axis and flag for path, flag in zip(paths, flags, strict=True)]
    if unknown or not any(named):
        raise ValueError(
            f"axis names no prunable leaf, or {unknown[:5]}, which are not among the "
            f"leaves {paths[:5]}. Pass what input_axes returns."
        )
    return named


def _axes(axis: Any, path: str, leaf: Any) -> tuple[int, ...]:
    if isinstance(axis, Mapping):
        axis = axis[path]
    several = isinstance(axis, Sequence) and not isinstance(axis, str)
    axes = [_checks.check_axis(a) for a in (axis if several else [axis])]
    known = range(-leaf.ndim, leaf.ndim)
    if not axes or not all(a in known for a in axes):
        raise ValueError(
            f"The leaf {path} of shape {leaf.shape} does not have the axes {(*axes,)}. "
            f"Pass one or more axes from {known[0]} to {known[-1]}."
        )
    return tuple(sorted({a % leaf.ndim for a in axes}))
