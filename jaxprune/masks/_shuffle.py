"""Is it the mask that matters? What a pruning method must beat."""

import jax
import jax.numpy as jnp

from jaxprune._types import Mask
from jaxprune.core import _checks
from jaxprune.core._placement import shard_like
from jaxprune.masks import _counting
from jaxprune.masks._threshold import best_of_each
from jaxprune.scores._from_loss import random


def shuffle_mask(key: jax.Array, mask: Mask) -> Mask:
    r"""Shuffles a mask within each leaf: as many weights stay, others.

    What a method finds beyond each layer's sparsity is lost, so where accuracy is not,
    the method found a sparsity per layer and no weights. With
    :math:`\|m_l\|_0` the number kept of leaf l, it draws a mask that keeps
    :math:`\|m_l\|_0` weights at random, each set of that many as likely as any other:
    what a random permutation makes of the old one, without a sort. A leaf that is all
    True, as those that may not be pruned are, stays so.

    The other checks of the paper need no function: fresh weights are those of another
    key at init, and ``jax.tree.map(jnp.negative, scores)`` keeps the worst.

    Args:
      key: a JAX random key.
      mask: a tree of bool, ``True`` = kept.

    Returns:
      A mask with the structure, shapes and sharding of ``mask``, and its count in every
      leaf.

    Raises:
      ValueError: if the mask has no entries.
      TypeError: if the mask is not bool.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> mask = {"w": jnp.array([[True, False, False, False]]), "b": jnp.ones(2, bool)}
      >>> jp.shuffle_mask(jax.random.key(0), mask)
      {'b': Array([ True,  True], dtype=bool), 'w': Array([[False, False,  True,
      False]], dtype=bool)}

    References:
      Frankle et al., `Pruning Neural Networks at Initialization: Why Are We Missing the
      Mark? <https://arxiv.org/abs/2009.08576>`_, ICLR 2021.
    """
    _checks.check_key(key)
    _checks.check_mask(mask, mask)
    leaves, structure = jax.tree.flatten(mask)
    leaves = [jnp.asarray(m) for m in leaves]
    filled = [m for m in leaves if m.size]
    if not filled:
        raise ValueError(
            "mask has no leaves, or only empty ones. Pass the mask that a mask builder "
            "returned."
        )
    # Not the noise that a random mask of the same key was made from.
    noise = random(jax.random.fold_in(key, 1))([m.astype(jnp.float32) for m in filled])
    drawn = iter(best_of_each(noise, _counting.count_true(filled), None))
    return structure.unflatten(
        shard_like(next(drawn), m) if m.size else m for m in leaves
    )
