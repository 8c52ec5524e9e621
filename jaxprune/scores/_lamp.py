"""LAMP: scores rescaled within each leaf, so that one threshold suits all leaves."""

import jax
import jax.numpy as jnp

from jaxprune._types import Scores
from jaxprune.core import _checks
from jaxprune.core._dtypes import precision_of, upcast_half
from jaxprune.core._placement import replicate, shard_like


def lamp(scores: Scores) -> Scores:
    r"""Rescales each score to its share of the squared scores of the remaining leaf.

    With the scores :math:`s` of one leaf in descending order,

    .. math:: \mathrm{LAMP}(u) = \frac{s_u^2}{\sum_{v \le u} s_v^2},

    where the sum runs over u and all larger scores of its leaf. For
    :math:`s = |\theta|` it is the relative squared error of removing weight u after all
    smaller ones. So ``global_mask(lamp(magnitude(params)), sparsity)`` chooses the
    sparsity of each leaf without a hyperparameter. The paper rescales magnitudes; we
    allow any non-negative score.

    The order within a leaf does not change, up to rounding. Ties rank by flat index,
    the lower first, as in `global_mask`. The best weight of every leaf scores exactly
    1, even if all scores are equal, and is the last of its leaf to be removed. A leaf
    of zeros scores 0 everywhere.

    Unlike the masks, this needs a sort. A sharded leaf is gathered on every device
    while it is sorted, and the result has the leaf's sharding. Inside ``shard_map``
    each shard is treated as a leaf.

    Args:
      scores: a tree of non-negative floating arrays, larger = keep. Negative scores
        count as 0. NaN and infinities are returned unchanged and left out of the sums.

    Returns:
      Scores in [0, 1] with the structure, shapes and shardings of ``scores``, float32
      or wider. In float32, scores less than about 1e-19 times the leaf's largest become
      0, because their squares underflow: take the square root of scores with a wider
      range, or pass float64.

    Raises:
      ValueError: if ``scores`` has no leaves, or a leaf has 2**31 entries or more.
      TypeError: if a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[30.0, 30.0]])}
      >>> scores = jp.lamp(jp.magnitude(params))
      >>> scores
      {'a': Array([[0.2, 1. ]], dtype=float32), 'b': Array([[1. , 0.5]],
      dtype=float32)}
      >>> jp.global_mask(scores, 0.5)
      {'a': Array([[False,  True]], dtype=bool), 'b': Array([[ True, False]],
      dtype=bool)}

    References:
      Lee et al., `Layer-adaptive Sparsity for the Magnitude-based Pruning
      <https://arxiv.org/abs/2010.07611>`_, ICLR 2021.
    """
    _checks.check_floating(scores, "scores")
    for path, leaf in zip(
        _checks.leaf_paths(scores), jax.tree.leaves(scores), strict=True
    ):
        if leaf.size >= 2**31:
            raise ValueError(
                f"lamp sorts leaves of fewer than 2**31 entries; the leaf {path} has "
                f"{leaf.size}. Split it, for example into layers."
            )
    with precision_of(scores):
        return jax.tree.map(
            lambda s, wide: shard_like(_rescaled(wide), s), scores, upcast_half(scores)
        )


@jax.jit
def _rescaled(scores: jax.Array) -> jax.Array:
    if not scores.size:
        return scores
    whole, restore = replicate(scores)
    whole = whole.reshape(-1)
    whole = jnp.where(jnp.isfinite(whole), jnp.maximum(whole, 0), 0)
    largest = jnp.max(whole)
    shares = whole / jnp.where(largest > 0, largest, 1)
    index = jax.lax.iota(jnp.int32, shares.size)
    descending, order = jax.lax.sort((-shares, index), is_stable=True, num_keys=1)
    squares = jnp.square(descending)
    sums = jnp.cumsum(squares)
    ratios = jnp.where(squares > 0, squares / jnp.where(sums > 0, sums, 1), 0)
    rescaled = jnp.zeros_like(shares).at[order].set(ratios, unique_indices=True)
    rescaled = restore(rescaled.reshape(scores.shape))
    return jnp.where(jnp.isfinite(scores), rescaled, scores)
