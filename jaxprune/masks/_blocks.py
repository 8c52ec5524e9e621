"""Masks that keep or remove whole blocks of the last two axes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxprune._types import Mask, Numeric, Prunable, Scores
from jaxprune.core import _checks
from jaxprune.core._dtypes import precision_of, upcast_half
from jaxprune.core._placement import shard_like
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.masks._threshold import global_mask, layerwise_mask

_POOLS = {"sum": jnp.sum, "max": jnp.max}
_SCOPES = {"global": global_mask, "layerwise": layerwise_mask}


def block_mask(
    scores: Scores,
    sparsity: PyTree[Numeric],
    block: Sequence[int],
    *,
    scope: str = "global",
    reduce: str = "sum",
    prunable: Prunable = matrices,
    prior: Mask | None = None,
) -> Mask:
    r"""Keeps the best-scoring blocks of the last two axes, for block-sparse kernels.

    A leaf of shape :math:`(\dots, m, n)` is divided into blocks of
    :math:`b_1 \times b_2`. The block at (i, j) scores

    .. math:: S_{ij} = \sum_{k \in B_{ij}} s_k,

    or the maximum in place of the sum. Blocks are then selected as `global_mask` and
    `layerwise_mask` select weights: exactly ``round(sparsity * blocks)`` are removed,
    and of equal blocks the last in leaf order are removed first. Each tap of a
    convolution kernel (H, W, I, O) is divided along I and O.

    Args:
      scores: a tree of floating arrays, larger = keep. NaN and infinities count as in
        `global_mask`; the sum of inf and -inf is NaN. Half precision is summed in
        float32.
      sparsity: fraction of blocks removed, in [0, 1): a number, or with
        ``scope="layerwise"`` also a tree of numbers, such as `erk` returns.
      block: the shape of a block, two whole numbers; (1, 1) prunes single weights.
      scope: ``"global"`` for one threshold over the blocks of all leaves, or
        ``"layerwise"`` for one threshold per leaf.
      reduce: ``"sum"`` or ``"max"``, how the scores of a block are combined.
      prunable: which leaves to prune. ``jp.divisible_by(block, axis=(-2, -1))`` keeps
        leaves dense that cannot be divided into blocks.
      prior: a mask. Weights that it prunes stay pruned and add nothing to the score of
        their block. Blocks that it empties count toward ``sparsity``; if it empties
        more than that, it is returned.

    Returns:
      A mask with the structure, shapes and sharding of ``scores``. Nothing is moved
      between devices if blocks do not cross shards.

    Raises:
      ValueError: if ``block``, ``scope`` or ``reduce`` is invalid, a prunable leaf
        cannot be divided into blocks, or for the reasons of `global_mask` and
        `layerwise_mask`.
      TypeError: if a leaf is not floating, or ``prior`` is not bool.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> scores = {"w": jnp.array([[9.0, 0.0, 5.0, 5.0], [0.0, 0.0, 5.0, 5.0]])}
      >>> print(jp.block_mask(scores, 0.5, (2, 2))["w"])
      [[False False  True  True]
       [False False  True  True]]

    References:
      Narang et al., `Block-Sparse Recurrent Neural Networks
      <https://arxiv.org/abs/1711.02782>`_, 2017. It scores a block by its largest
      weight.
    """
    _check_options(block, scope, reduce)
    _checks.check_floating(scores, "scores")
    if prior is not None:
        _checks.check_mask(prior, scores, "prior")
    flags = select_prunable(scores, prunable)
    block = [int(entries) for entries in block]
    _check_divisible(scores, block, flags)
    chosen = jax.tree.structure(scores).unflatten(flags)

    def pooled(leaf: Any, flag: bool) -> Any:
        return _pooled(leaf, block, _POOLS[reduce]) if flag else leaf

    with precision_of(scores):
        live = upcast_half(scores)
        if prior is not None:  # Weights that it prunes add nothing to their block.
            nothing = 0.0 if reduce == "sum" else -jnp.inf
            live = jax.tree.map(lambda s, m: jnp.where(m, s, nothing), live, prior)
        blocks = jax.tree.map(pooled, live, chosen)
    remaining = None
    if prior is not None:
        remaining = jax.tree.map(
            lambda m, flag: _pooled(m, block, jnp.any) if flag else m, prior, chosen
        )
    kept = _SCOPES[scope](blocks, sparsity, prunable=chosen, prior=remaining)
    mask = jax.tree.map(lambda m, flag: _spread(m, block) if flag else m, kept, chosen)
    if prior is not None:
        mask = jax.tree.map(jnp.logical_and, mask, prior)
    return jax.tree.map(shard_like, mask, scores)


def _check_options(block: Any, scope: str, reduce: str) -> None:
    if not isinstance(block, tuple | list) or len(block) != 2:
        raise ValueError(
            "block must be the shape of a block over the last two axes, such as "
            f"(4, 4); got {block!r}."
        )
    for entries in block:
        _checks.static_count(entries, "block", "weights along each axis")
    for name, value, known in (("scope", scope, _SCOPES), ("reduce", reduce, _POOLS)):
        if value not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}."
            )


def _check_divisible(scores: Any, block: Sequence[int], flags: Sequence[bool]) -> None:
    paths = _checks.leaf_paths(scores)
    for path, leaf, flag in zip(paths, jax.tree.leaves(scores), flags, strict=True):
        whole = leaf.ndim >= 2 and not any(
            size % entries for size, entries in zip(leaf.shape[-2:], block, strict=True)
        )
        if flag and not whole:
            raise ValueError(
                f"The leaf {path} of shape {leaf.shape} cannot be divided into blocks "
                f"of {tuple(block)} along its last two axes. To keep such leaves "
                f"dense, pass prunable=jp.divisible_by({tuple(block)}, axis=(-2, -1))."
            )


def _pooled(leaf: Any, block: Sequence[int], pool: Callable[..., jax.Array]) -> Any:
    """Reduces blocks of the last two axes: (..., m, n) to (..., m / b1, n / b2).

    One axis at a time, because a reshape can split only one axis that is sharded on an
    Explicit mesh.
    """
    for axis, size in zip((-2, -1), block, strict=True):
        axis = leaf.ndim + axis
        *lead, length = leaf.shape[: axis + 1]
        cut = (*lead, length // size, size, *leaf.shape[axis + 1 :])
        leaf = pool(jnp.reshape(leaf, cut), axis=axis + 1)
    return leaf


def _spread(mask: jax.Array, block: Sequence[int]) -> jax.Array:
    """Repeats the entry of each block over the block."""
    for axis, size in zip((-2, -1), block, strict=True):
        axis = mask.ndim + axis
        *lead, length = mask.shape[: axis + 1]
        rest = mask.shape[axis + 1 :]
        wide = jnp.expand_dims(mask, axis + 1)
        wide = jnp.broadcast_to(wide, (*lead, length, size, *rest))
        mask = wide.reshape(*lead, length * size, *rest)
    return mask
