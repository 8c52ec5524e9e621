"""Shuffled masks: the sanity check for pruning methods."""

import jax
import jax.numpy as jnp

from jaxprune._types import Key, Mask
from jaxprune.core import _checks
from jaxprune.core._placement import shard_like
from jaxprune.masks import _counting
from jaxprune.masks._threshold import best_of_each
from jaxprune.scores._from_loss import random


def shuffle_mask(key: Key, mask: Mask) -> Mask:
    r"""Shuffles a mask within each leaf, which keeps the leaf's count.

    This is the standard sanity check of a pruning method. If accuracy survives the
    shuffling, the method found sparsities of layers but no particular weights. If leaf
    l keeps :math:`\|m_l\|_0` weights, the new mask keeps :math:`\|m_l\|_0` weights
    chosen uniformly at random, as after a random permutation, but without a sort. A
    leaf that is all True stays so.

    The other two checks of the paper need no function: initialize with another key for
    fresh weights, and pass ``jax.tree.map(jnp.negative, scores)`` to keep the worst.

    Args:
      key: a JAX random key.
      mask: a tree of bool, ``True`` = kept.

    Returns:
      A mask with the structure, shapes, sharding and counts of ``mask``.

    Raises:
      ValueError: if the mask has no entries.
      TypeError: if the mask is not bool, or ``key`` is not a random key.

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
    # A random mask that was drawn with the same key must not come out again.
    noise = random(jax.random.fold_in(key, 1))([m.astype(jnp.float32) for m in filled])
    drawn = iter(best_of_each(noise, _counting.count_true(filled), None))
    return structure.unflatten(
        shard_like(next(drawn), m) if m.size else m for m in leaves
    )
