"""N of every M weights, reached step by step while training."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Mask, Params, Prunable, ScoreFn
from jaxprune.core import _checks
from jaxprune.core._prunable import matrices
from jaxprune.masks._n_m import n_m_mask
from jaxprune.masks._threshold import apply_mask
from jaxprune.scores._from_loss import magnitude
from jaxprune.transforms._update_mask import updated_mask


def gradual_n_m(
    n: Any,
    m: int,
    *,
    every: int | jax.Array = 1,
    axis: int = -2,
    score: ScoreFn = magnitude,
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes to N of every M while training: the last link of an optax chain.

    Update k = 1, 2, ... keeps, when ``k % every == 0``, the ``n(k)`` best of every
    ``m`` consecutive weights along an axis, by the scores of the parameters that it is
    given, inside the mask so far: what is pruned stays pruned. Other updates only
    enforce the mask, and before the first due update nothing is pruned. From M:M over
    (M-1):M down to N:M, the weights that stay have the time to make up for the others.

    Args:
      n: weights kept in every group: a whole number in [0, m], or an optax schedule of
        the update's number k, rounded to the nearest whole number, half to even. A
        schedule is traced: what it gives outside [0, m] counts as the nearer end.
      m: the size of a group, at least 1.
      every: updates between mask updates, at least 1.
      axis: the axis cut into groups; -2 is the reduction axis of Flax kernels.
      score: ``score(params) -> scores``, larger = keep; it sees parameters only.
      prunable: which leaves take part; `divisible_by` leaves those that do not divide
        dense.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseState`.

    Raises:
      ValueError: if ``n`` is a number outside [0, m], or ``m`` or ``every`` is less
        than 1; at update, without ``params``, or if a prunable leaf's axis is not a
        multiple of ``m``.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([[4.0], [1.0], [2.0], [3.0]])}
      >>> n = optax.linear_schedule(4, 2, transition_steps=2)
      >>> tx = optax.chain(optax.sgd(0.1), jp.gradual_n_m(n, 4))
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update({"w": jnp.zeros((4, 1))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(optax.tree.get(state, "mask")["w"].ravel())
      [ True False  True  True]
      [ True False False  True]

    References:
      Kao et al., `Training Recipe for N:M Structured Sparsity with Decaying Pruning
      Mask <https://arxiv.org/abs/2209.07617>`_, 2022.
    """
    m = _checks.static_count(m, "m", "weights in a group")
    if not callable(n):
        n, m = _checks.check_group(n, m)
    axis = _checks.check_axis(axis)
    _checks.check_callable(score, "score", "score(params) -> scores")

    def pruned(params: Params, mask: Mask, step: jax.Array) -> Mask:
        number = n
        if callable(n):
            number = jnp.round(jnp.asarray(n(step))).astype(jnp.int32)
        scores = score(apply_mask(params, mask))
        _checks.check_like(scores, params, "scores", "params")
        scores = jax.tree.map(lambda s, p: jnp.where(p, s, -jnp.inf), scores, mask)
        best = n_m_mask(scores, number, m, axis=axis, prunable=prunable)
        return jax.tree.map(jnp.logical_and, best, mask)

    return updated_mask("gradual_n_m", pruned, every, None)
