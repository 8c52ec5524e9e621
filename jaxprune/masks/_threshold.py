"""Masks from scores, with one threshold for all leaves or one per leaf."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune._types import Mask, Numeric, Params, Prunable, Scores
from jaxprune.core import _checks, _uint64
from jaxprune.core._per_leaf import per_leaf
from jaxprune.core._placement import all_true, shard_like
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.core._uint64 import Wide
from jaxprune.masks import _counting, _host, _selection


def global_mask(
    scores: Scores,
    sparsity: Numeric,
    *,
    prunable: Prunable = matrices,
    prior: Mask | None = None,
    min_keep: int = 0,
) -> Mask:
    """Keeps the best-scoring weights of the whole tree, with one threshold for all.

    Of the N prunable weights exactly ``round(sparsity * N)`` are removed, those with
    the smallest scores. Of equal scores the last in leaf order are removed first, so
    the count is exact despite ties. Nothing is sorted, and sharded scores are not moved
    between devices. Unsharded leaves of up to four million scores are first copied into
    one array, which needs as much memory as they do.

    Args:
      scores: a tree of floating arrays, larger = keep. A weight that scores ``inf`` is
        always kept and one that scores ``-inf`` is removed first; NaN ranks below -inf.
      sparsity: fraction of prunable weights removed, in [0, 1). The count is rounded
        half to even: in float64 for a Python number, and exactly for a traced float32.
        A traced value is clipped to [0, 1], because it cannot raise an error.
      prunable: which leaves to prune; the remaining leaves are kept whole.
      prior: a mask. Weights that it prunes stay pruned and count toward ``sparsity``.
        If it prunes more than that, it is returned.
      min_keep: the number of weights, the best ones, that each prunable leaf keeps at
        least, to prevent layer collapse. The total stays exact.

    Returns:
      A mask with the structure, shapes and sharding of ``scores``.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1), nothing is prunable, ``min_keep``
        asks for more than ``sparsity`` leaves, ``prior`` does not match, or, outside
        ``jit``, a score is NaN.
      TypeError: if a leaf is not floating, or ``prior`` is not bool.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> scores = {"a": jnp.array([[0.1, 0.9]]), "b": jnp.array([[0.8, 0.2]])}
      >>> jp.global_mask(scores, sparsity=0.5)
      {'a': Array([[False,  True]], dtype=bool), 'b': Array([[ True, False]],
      dtype=bool)}
    """
    _checks.check_sparsity(sparsity)
    min_keep = _checks.static_count(min_keep, "min_keep", "weights", least=0)
    flags = check_scores(scores, prunable, prior)
    chosen, eligible = prunable_leaves(scores, flags, prior)
    size = sum(leaf.size for leaf in chosen)
    keep = keep_count(sparsity, size)
    floor = sum(min(min_keep, leaf.size) for leaf in chosen)
    if _checks.is_python_number(sparsity) and floor > _uint64.to_int(keep):
        raise ValueError(
            f"min_keep={min_keep} keeps at least {floor} weights in {len(chosen)} "
            f"prunable leaves, but sparsity={sparsity} keeps only "
            f"{_uint64.to_int(keep)} of {size}. Lower one of the two."
        )
    return assemble(
        scores, flags, _best_of_all(chosen, keep, eligible, min_keep), prior
    )


def layerwise_mask(
    scores: Scores,
    sparsity: PyTree[Numeric],
    *,
    prunable: Prunable = matrices,
    prior: Mask | None = None,
) -> Mask:
    """Keeps the best-scoring weights of each leaf, with one threshold per leaf.

    Of a prunable leaf of n weights exactly ``round(sparsity * n)`` are removed. Ties,
    NaN and infinities count as in `global_mask`.

    Args:
      scores: a tree of floating arrays, larger = keep.
      sparsity: fraction of each leaf removed, in [0, 1): a number for all leaves
        (uniform), or a tree of numbers with the structure of ``scores`` or a prefix of
        it, such as `erk` and `sparsities` return. Numbers of leaves that are not
        prunable are ignored.
      prunable: which leaves to prune; the remaining leaves are kept whole.
      prior: a mask. Weights that it prunes stay pruned and count toward the sparsity.

    Returns:
      A mask with the structure, shapes and sharding of ``scores``.

    Raises:
      ValueError: if a sparsity is not in [0, 1), its tree does not match, nothing is
        prunable, ``prior`` does not match, or, outside ``jit``, a score is NaN.
      TypeError: if a leaf is not floating, or ``prior`` is not bool.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> scores = {"a": jnp.array([[0.1, 0.9]]), "b": jnp.array([[0.8, 0.7]])}
      >>> jp.layerwise_mask(scores, sparsity=0.5)
      {'a': Array([[False,  True]], dtype=bool), 'b': Array([[ True, False]],
      dtype=bool)}
    """
    flags = check_scores(scores, prunable, prior)
    sparsities = broadcast_sparsity(sparsity, scores, flags)
    chosen, eligible = prunable_leaves(scores, flags, prior)
    counts = [
        keep_count(s, leaf.size) for s, leaf in zip(sparsities, chosen, strict=True)
    ]
    keep = _uint64.stacked(counts)
    return assemble(scores, flags, best_of_each(chosen, keep, eligible), prior)


def apply_mask(params: Params, mask: Mask) -> Params:
    r"""Sets the pruned weights to exactly 0.

    .. math:: \theta_i \mapsto \theta_i \text{ where } m_i, \text{ else } 0.

    The values are selected, not multiplied, so a pruned NaN or infinity becomes 0 too.

    Args:
      params: any pytree of arrays.
      mask: a tree of bool like ``params``, ``True`` = kept.

    Returns:
      A tree like ``params``, with its dtypes and shardings.

    Raises:
      ValueError: if the mask does not match ``params``, or keeps no weight at all.
      TypeError: if the mask is not bool.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.apply_mask({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])})
      {'w': Array([1., 0.], dtype=float32)}
    """
    _checks.check_mask(mask, params)
    _checks.check_keeps_something(mask)
    if _checks.on_host((params, mask)):
        return jax.tree.map(_host.keep, mask, params)
    return jax.tree.map(lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, mask)


def keep_at_most(
    scores: Scores, keep: Wide, flags: Sequence[bool], prior: Mask
) -> Mask:
    """`global_mask` with a number of weights to keep, static or traced."""
    chosen, eligible = prunable_leaves(scores, flags, prior)
    return assemble(scores, flags, _best_of_all(chosen, keep, eligible, 0), prior)


def check_scores(scores: Any, prunable: Prunable, prior: Any) -> list[bool]:
    _checks.check_floating(scores, "scores")
    _checks.check_no_nans(scores, "scores")
    if prior is not None:
        _checks.check_mask(prior, scores, "prior")
    return select_prunable(scores, prunable)


def prunable_leaves(
    scores: Any, flags: Sequence[bool], prior: Any
) -> tuple[list[jax.Array], list[jax.Array] | None]:
    def chosen(tree: Any) -> list[jax.Array]:
        pairs = zip(jax.tree.leaves(tree), flags, strict=True)
        return [jnp.asarray(leaf) for leaf, flag in pairs if flag]

    return chosen(scores), None if prior is None else chosen(prior)


def keep_count(sparsity: Numeric, size: int) -> Wide:
    """Returns how many of ``size`` weights a sparsity keeps, which may be traced."""
    if _checks.is_python_number(sparsity):
        return _uint64.wide(size - round(float(sparsity) * size))
    return _uint64.subtract(_uint64.wide(size), _uint64.scaled(sparsity, size))


def broadcast_sparsity(
    sparsity: PyTree[Numeric], scores: Params, flags: Sequence[bool]
) -> list[Any]:
    """Lists the checked sparsity of each prunable leaf."""
    values = per_leaf(sparsity, scores, "sparsity")
    pairs = zip(_checks.leaf_paths(scores), values, flags, strict=True)
    for path, value, flag in pairs:
        if flag:
            _checks.check_sparsity(value, f"sparsity of {path}")
    return [value for value, flag in zip(values, flags, strict=True) if flag]


def best_of_each(
    leaves: list[jax.Array], keep: Wide, eligible: list[jax.Array] | None
) -> list[jax.Array]:
    """Marks the largest entries of each leaf, ``keep`` of them.

    Concrete values on one CPU device are ranked in NumPy, which compiles nothing.
    """
    if _host.can_rank(leaves, keep, eligible):
        return _host.best_of_each(leaves, keep, eligible)
    return _each(leaves, keep, eligible)


@jax.jit(static_argnums=3)
def _all(
    leaves: list[jax.Array],
    keep: Wide,
    eligible: list[jax.Array] | None,
    min_keep: int,
) -> list[jax.Array]:
    if not min_keep:
        return _selection.best_of_all(leaves, keep, eligible)
    allowed = eligible or [jnp.ones_like(leaf, dtype=bool) for leaf in leaves]
    least = _uint64.wide([min_keep] * len(leaves))
    floor = _selection.best_of_each(leaves, least, allowed)
    rest = [a & ~f for a, f in zip(allowed, floor, strict=True)]
    kept = _uint64.sum_of(_counting.count_true(floor))
    room = _uint64.saturating_subtract(keep, kept)
    others = _selection.best_of_all(leaves, room, rest)
    return [f | o for f, o in zip(floor, others, strict=True)]


_each = jax.jit(_selection.best_of_each)


def _best_of_all(
    leaves: list[jax.Array],
    keep: Wide,
    eligible: list[jax.Array] | None,
    min_keep: int,
) -> list[jax.Array]:
    if _host.can_rank(leaves, keep, eligible):
        return _host.best_of_all(leaves, keep, eligible, min_keep)
    return _all(leaves, keep, eligible, min_keep)


def assemble(
    scores: Any, flags: Sequence[bool], masks: Sequence[jax.Array], prior: Any = None
) -> Any:
    """Builds the mask of a tree from the masks of its prunable leaves."""
    remaining = iter(masks)
    leaves, structure = jax.tree.flatten(scores)
    kept = [None] * len(leaves) if prior is None else jax.tree.leaves(prior)
    result = []
    for leaf, flag, old in zip(leaves, flags, kept, strict=True):
        if flag:
            result.append(shard_like(next(remaining), leaf))
        else:
            result.append(all_true(leaf) if old is None else old)
    return jax.tree.unflatten(structure, result)
