"""OWL: blocks with more outliers among their scores are pruned less."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Prunable, Real
from jaxprune.core import _checks
from jaxprune.post_training._blocks import block_at, count_blocks, forward
from jaxprune.post_training._layers import Layers, layer_statistics
from jaxprune.post_training._wanda import like_leaf, squares


def owl(
    block_fn: Callable[[Any, Any], Any],
    blocks: Any,
    hidden: Iterable[Any],
    sparsity: Real,
    *,
    limit: Real = 0.08,
    threshold: Real = 5.0,
    prunable: Prunable | None = None,
) -> list[float]:
    r"""Distributes a sparsity over blocks by the outliers among their Wanda scores.

    Let :math:`D_l` be the fraction of block l's scores, over all its layers, that are
    above ``threshold`` times their mean. The block's density is

    .. math:: 1 - s + 2 \lambda \left( \frac{D_l - \min D}{\max D - \min D}
              - \text{mean} \right),

    with the overall sparsity s, ``limit`` :math:`\lambda`, and the mean of the
    fractions over the blocks. A sparsity of 0 or less becomes 0.01, as in the authors'
    code, and one above 0.99 becomes 0.99. The scores are computed on the dense network.

    Args:
      block_fn: ``block_fn(block, hidden) -> hidden``, as for `prune_blocks`.
      blocks: a list of trees, or one tree with a leading axis of layers.
      hidden: batches of hidden states, the inputs of the first block.
      sparsity: the mean of the blocks' sparsities, in [0, 1).
      limit: the factor :math:`\lambda`; the sparsities of two blocks differ by at most
        twice the limit.
      threshold: a score above this multiple of the mean is an outlier.
      prunable: which leaves of a block are scored, as for `prune_blocks`.

    Returns:
      A list with one sparsity for each block, for `prune_blocks`. For a mask of a list
      of blocks, ``jax.tree.broadcast(sparsities, blocks)`` is the tree of sparsities.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1), ``limit`` or ``threshold`` is
        negative, or there are no blocks or no batches.
      TypeError: if ``block_fn`` cannot be called, or an option is not a number.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> even, outlier = jnp.ones((4, 4)), jnp.ones((4, 4)).at[0, 0].set(99)
      >>> x = [jnp.ones((3, 4))]
      >>> found = jp.owl(lambda w, x: x @ w, [even, outlier], x, 0.7)
      >>> [round(s, 2) for s in found]
      [0.78, 0.62]

    References:
      Yin et al., `Outlier Weighed Layerwise Sparsity (OWL)
      <https://arxiv.org/abs/2310.05175>`_, ICML 2024, Section 3.
    """
    _checks.check_callable(block_fn, "block_fn", "block_fn(block, hidden) -> hidden")
    _checks.check_batches(hidden)
    _checks.check_sparsity(sparsity)
    for name, value in (("limit", limit), ("threshold", threshold)):
        if not _checks.is_python_number(value):
            raise TypeError(f"{name} must be a number; got {_checks.described(value)}.")
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0; got {value}.")
    hidden, shares = list(hidden), []
    for i in range(count_blocks(blocks)):
        block = block_at(blocks, i)
        layers, totals = layer_statistics(block_fn, block, hidden, squares, prunable)
        shares.append(_outliers(block, totals, threshold, layers))
        for j, batch in enumerate(hidden):
            hidden[j] = forward(block_fn, block, batch)
    return _shared_out([float(share) for share in shares], float(sparsity), limit)


@functools.partial(jax.jit, static_argnums=3)
def _outliers(block: Any, totals: Any, threshold: Any, layers: Layers) -> jax.Array:
    """The fraction of a block's scores above a multiple of their mean."""
    leaves, scores = jax.tree.leaves(block), []
    for i, layout, slot in layers.each():
        norms = jnp.sqrt(like_leaf(totals[slot], layout, leaves[i].shape))
        scores.append(jnp.abs(leaves[i].astype(jnp.float32)) * norms)
    size = sum(s.size for s in scores)
    mean = jnp.stack([jnp.sum(s) for s in scores]).sum() / size
    found = [jnp.sum(s > threshold * mean, dtype=jnp.float32) for s in scores]
    return jnp.stack(found).sum() / size


def _shared_out(shares: Sequence[float], sparsity: float, limit: float) -> list[float]:
    found = np.asarray(shares)
    width = found.max() - found.min()
    density = 2 * limit * (found - found.min()) / (width or 1.0)
    wanted = sparsity - (density - density.mean())
    return [float(s) for s in np.clip(np.where(wanted > 0, wanted, 0.01), 0, 0.99)]
