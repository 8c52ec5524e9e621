"""Magnitude pruning while training, along a schedule."""

from typing import Any

import jax
import optax

from jaxprune._types import Mask, Params, Prunable, ScoreFn
from jaxprune.core import _checks
from jaxprune.core._prunable import matrices
from jaxprune.masks._threshold import apply_mask, global_mask
from jaxprune.scores._from_loss import magnitude
from jaxprune.transforms._keep_sparse import value_at, zeros_first
from jaxprune.transforms._update_mask import updated_mask


def gradual(
    sparsity: Any,
    *,
    every: int | jax.Array = 1,
    until: int | jax.Array | None = None,
    score: ScoreFn = magnitude,
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes while training, along a schedule: the last link of an optax chain.

    Update k = 1, 2, ... recomputes the mask when ``k % every == 0``, at
    ``sparsity(k)``, from the scores of the parameters that it is given, inside the mask
    so far: pruned weights stay pruned, and weights that are exactly 0, for example
    because an earlier link removed them, are removed first. Other updates only enforce
    the mask.
    Before the first due update nothing is pruned. (To score the parameters that update
    k produces, every update would have to write them out to memory first.)

    Zhu & Gupta's cubic is ``optax.polynomial_schedule(0.0, s, power=3,
    transition_steps=n)``. They prune each layer to the same sparsity; here one
    threshold serves all leaves.

    Args:
      sparsity: fraction of prunable weights removed, in [0, 1): a number, or an optax
        schedule of the update's number k. A schedule is traced: what it gives outside
        [0, 1] counts as the nearer end.
      every: updates between mask updates, at least 1. If the training is shorter than
        this, nothing is ever pruned: `summary` then shows a sparsity of 0.
      until: the last update that may change the mask; None is for ever.
      score: ``score(params) -> scores``, larger = keep; it sees parameters only.
      prunable: which leaves take part.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseState`.

    Raises:
      ValueError: if ``sparsity`` is a number outside [0, 1), ``every < 1``, or
        ``until`` comes before the first due update; at update, without ``params``, or
        with gradients that are not like them.
      TypeError: at init, if a parameter is not floating.

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
    if not callable(sparsity):
        _checks.check_sparsity(sparsity)
    _checks.check_callable(score, "score", "score(params) -> scores")

    def pruned(params: Params, mask: Mask, step: jax.Array) -> Mask:
        masked = apply_mask(params, mask)
        scores = score(masked)
        _checks.check_like(scores, params, "scores", "params")
        scores = zeros_first(scores, masked)
        return global_mask(
            scores, value_at(sparsity, step), prunable=prunable, prior=mask
        )

    return updated_mask("gradual", pruned, every, until)
