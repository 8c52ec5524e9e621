"""Magnitude pruning during training, along a schedule."""

import jax
import optax
from jaxtyping import PyTree

from jaxprune._types import Mask, Params, Prunable, ScoreFn
from jaxprune.core import _checks
from jaxprune.core._per_leaf import is_tree
from jaxprune.core._prunable import matrices
from jaxprune.masks._threshold import apply_mask, global_mask, layerwise_mask
from jaxprune.scores._from_loss import magnitude
from jaxprune.transforms._keep_sparse import zeros_first
from jaxprune.transforms._update_mask import updated_mask
from jaxprune.transforms._values import values_at


def gradual(
    sparsity: PyTree[optax.ScalarOrSchedule],
    *,
    every: int | jax.Array = 1,
    until: int | jax.Array | None = None,
    score: ScoreFn = magnitude,
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes during training, along a schedule: the last link of an optax chain.

    Update k = 1, 2, ... recomputes the mask when ``k % every == 0`` and
    ``k <= until``: it prunes to ``sparsity(k)`` by the scores of the parameters before
    the update. Pruned weights stay pruned, and weights that are exactly 0, for example
    because an earlier link removed them, are removed first. Every update keeps pruned
    weights at 0. Before the first mask update nothing is pruned.

    The cubic schedule of Zhu & Gupta is ``optax.polynomial_schedule(0.0, s, power=3,
    transition_steps=n)``. They prune each layer to the same sparsity; this link uses
    one threshold for all leaves, unless ``sparsity`` is a tree. They score the updated
    parameters; this link scores those before the update, so that other updates need not
    write them to memory.

    Args:
      sparsity: fraction of prunable weights removed, in [0, 1): a number, or an optax
        schedule of the number k of the update. The values of a schedule are clipped to
        [0, 1]. A tree of numbers and schedules like the parameters, such as
        `sparsities` returns, prunes each leaf to its own sparsity.
      every: updates between mask updates, at least 1. In a training run shorter than
        this (``every=100`` and 95 updates), nothing is pruned; `summary` then warns.
      until: the last update that may change the mask; None for no limit.
      score: ``score(params) -> scores``, larger = keep; it is called with the
        parameters only.
      prunable: which leaves to prune; the remaining leaves are kept whole.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseState`.

    Raises:
      ValueError: if ``sparsity`` is a number outside [0, 1), ``every < 1``, or
        ``until`` comes before the first mask update; at update, if ``params`` is
        missing or the gradients do not match it.
      TypeError: if ``score`` is not a function; at init, if a parameter is not
        floating.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> tx = optax.chain(optax.sgd(0.1), jp.gradual(0.5, every=2))
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> optax.tree.get(state, "mask")
      {'w': Array([[False, False,  True,  True]], dtype=bool)}

    References:
      Zhu & Gupta, `To prune, or not to prune
      <https://arxiv.org/abs/1710.01878>`_, 2017, Section 3.
    """
    for value in jax.tree.leaves(sparsity) or [sparsity]:
        if not callable(value):
            _checks.check_sparsity(value)
    build = layerwise_mask if is_tree(sparsity) else global_mask
    _checks.check_callable(score, "score", "score(params) -> scores")

    def pruned(params: Params, mask: Mask, step: jax.Array) -> Mask:
        masked = apply_mask(params, mask)
        scores = score(masked)
        _checks.check_like(scores, params, "scores", "params")
        scores = zeros_first(scores, masked)
        values = values_at(sparsity, step, params)
        return build(scores, values, prunable=prunable, prior=mask)

    return updated_mask("gradual", pruned, every, until)
