"""LAMP: scores rescaled within each leaf, so that one threshold fits all leaves."""

import jax
import jax.numpy as jnp

from jaxprune._types import Scores
from jaxprune.core import _checks
from jaxprune.core._dtypes import precision_of, upcast_half
from jaxprune.core._placement import replicate, shard_like


def lamp(scores: Scores) -> Scores:
    r"""Rescales each score to the share of its leaf that would go with it.

    With the scores :math:`s` of one leaf in falling order,

    .. math:: \mathrm{LAMP}(u) = \frac{s_u^2}{\sum_{v \le u} s_v^2},

    the sum running over u and all that rank before it. For :math:`s = |\theta|` that is
    the relative square error of the leaf when u is removed from what is left, so
    ``global_mask(lamp(magnitude(params)), sparsity)`` allocates sparsity to leaves
    without a parameter to set. The paper rescales magnitudes; any saliency that is not
    negative will do.

    The order within a leaf stays, to rounding. Ties rank by flat index, the lower
    first, as in `global_mask`, and are summed in that order: the best of every leaf
    scores exactly 1 and is the last of it to go, also with all scores equal; in a leaf
    of zeros all score 0.

    Unlike the masks this needs a sort: a leaf that is sharded is gathered on every
    device while its turn lasts, and the rescaled scores are laid where it lay. Inside
    ``shard_map`` each shard is a leaf of its own.

    Args:
      scores: a tree of floating arrays, not negative, larger = keep; a finite one below
        0 counts as 0. Half precision is squared and summed in float32, after division
        by the leaf's largest score. NaN and infinities stay what they are, and are left
        out of the sums.

    Returns:
      Scores in [0, 1] with the structure, shapes and shardings of ``scores``, float32
      or wider; 0 for a score of 0, and in float32 for one whose share of the leaf's
      largest is under some 1e-19, whose square may be flushed to 0: take the root of
      scores that span more, or float64.

    Raises:
      ValueError: if ``scores`` has no leaves, or a leaf 2**31 entries or more.
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
                f"lamp sorts leaves of less than 2**31 entries; the leaf {path} has "
                f"{leaf.size}. Split it, for example layer by layer."
            )
    with precision_of(scores):
        return jax.tree.map(
            lambda s, wide: shard_like(_rescaled(wide), s), scores, upcast_half(scores)
        )


@jax.jit
def _rescaled(scores: jax.Array) -> jax.Array:
    if not scores.size:
        return scores
    whole, laid = replicate(scores)
    whole = whole.reshape(-1)
    whole = jnp.where(jnp.isfinite(whole), jnp.maximum(whole, 0), 0)
    largest = jnp.max(whole)
    shares = whole / jnp.where(largest > 0, largest, 1)
    index = jax.lax.iota(jnp.int32, shares.size)
    falling, order = jax.lax.sort((-shares, index), is_stable=True, num_keys=1)
    squares = jnp.square(falling)
    sums = jnp.cumsum(squares)
    ratios = jnp.where(squares > 0, squares / jnp.where(sums > 0, sums, 1), 0)
    rescaled = jnp.zeros_like(shares).at[order].set(ratios, unique_indices=True)
    rescaled = laid(rescaled.reshape(scores.shape))
    return jnp.where(jnp.isfinite(scores), rescaled, scores)
