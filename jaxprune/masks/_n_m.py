"""N:M sparsity: the best n of every m weights along an axis."""

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Prunable, Scores
from jaxprune.core import _checks
from jaxprune.core._dtypes import precision_of
from jaxprune.core._prunable import matrices
from jaxprune.masks._threshold import assemble, check_scores, prunable_leaves


def n_m_mask(
    scores: Scores,
    n: int | jax.Array,
    m: int,
    *,
    axis: int = -2,
    prunable: Prunable = matrices,
) -> Mask:
    """Keeps the ``n`` best of every ``m`` consecutive weights along an axis.

    2:4 is the pattern of sparse tensor cores. Of equal scores the first in the group
    are kept; NaN ranks below -inf.

    Args:
      scores: a tree of floating arrays, larger = keep.
      n: weights kept in each group, in [0, m]; it may be traced.
      m: weights in a group, at least 1.
      axis: the axis that is divided into groups; -2 is the input axis of Flax kernels.
      prunable: which leaves to prune; the remaining leaves are kept whole. Use
        `divisible_by` to keep leaves dense whose axis is not a multiple of ``m``.

    Returns:
      A mask with the structure, shapes and sharding of ``scores``.

    Raises:
      ValueError: if ``n > m``, a prunable leaf's axis is not a multiple of ``m``,
        nothing is prunable, or, outside ``jit``, a score is NaN.
      TypeError: if a leaf is not floating, ``m`` is traced, or ``axis`` is not an
        integer.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> scores = jnp.array([[4.0], [1.0], [2.0], [3.0]])
      >>> jp.n_m_mask(scores, 2, 4)[:, 0]
      Array([ True, False, False,  True], dtype=bool)
    """
    (n, m), axis = _checks.check_group(n, m), _checks.check_axis(axis)
    flags = check_scores(scores, prunable, None)
    for path, leaf, flag in zip(
        _checks.leaf_paths(scores), jax.tree.leaves(scores), flags, strict=True
    ):
        if flag and axis not in range(-leaf.ndim, leaf.ndim):
            raise ValueError(
                f"The leaf {path} of shape {leaf.shape} has no axis {axis!r}. For the "
                "input axis of a Flax kernel pass axis=-2."
            )
        if flag and leaf.shape[axis] % m:
            raise ValueError(
                f"The leaf {path} of shape {leaf.shape} has {leaf.shape[axis]} entries "
                f"along axis {axis}, not a multiple of m={m}. To keep such leaves "
                f"dense, pass prunable=jp.divisible_by({m})."
            )
    chosen, _ = prunable_leaves(scores, flags, None)
    return assemble(scores, flags, [best_of_groups(x, n, m, axis) for x in chosen])


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
