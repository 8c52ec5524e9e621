"""N:M sparsity during training, with a decreasing N."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxprune._types import Mask, Params, Prunable, ScoreFn
from jaxprune.core import _checks
from jaxprune.core._axes import FLAX, Axes, check_axes
from jaxprune.core._prunable import matrices
from jaxprune.masks._n_m import n_m_mask
from jaxprune.masks._threshold import apply_mask
from jaxprune.scores._from_loss import magnitude
from jaxprune.transforms._update_mask import updated_mask
from jaxprune.transforms._values import values_at


def gradual_n_m(
    n: PyTree[int | optax.ScalarOrSchedule],
    m: int,
    *,
    every: int | jax.Array = 1,
    axis: Axes = FLAX,
    score: ScoreFn = magnitude,
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes to N of every M weights during training: the last link of an optax chain.

    When ``k % every == 0``, update k = 1, 2, ... keeps the ``n(k)`` best of every ``m``
    consecutive weights along an axis, by the scores of the parameters before the
    update. Pruned weights stay pruned, and every update keeps them at 0. Before the
    first mask update nothing is pruned. With a schedule from M:M over (M-1):M down to
    N:M, the remaining weights have time to adapt.

    Args:
      n: weights kept in each group: a whole number in [0, m], or an optax schedule of
        the number k of the update, whose values are rounded half to even and clipped to
        [0, m]. Also a tree of numbers and schedules like the parameters.
      m: weights in a group, at least 1.
      every: updates between mask updates, at least 1. In a training run shorter than
        this, nothing is pruned.
      axis: the input axes, as in `n_m_mask`.
      score: ``score(params) -> scores``, larger = keep; it is called with the
        parameters only.
      prunable: which leaves to prune; the remaining leaves are kept whole. Use
        `divisible_by` to keep leaves dense whose inputs are not a multiple of ``m``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseState`.

    Raises:
      ValueError: if ``n`` is a number outside [0, m], or ``m`` or ``every`` is less
        than 1; at update, if ``params`` is missing, the gradients do not match it, or
        the axis of a prunable leaf is not a multiple of ``m``.
      TypeError: if ``score`` is not a function or ``axis`` is not an integer; at init,
        if a parameter is not floating.

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
    for number in jax.tree.leaves(n):
        if not callable(number):
            _checks.check_group(number, m)
    check_axes(axis)
    _checks.check_callable(score, "score", "score(params) -> scores")

    def pruned(params: Params, mask: Mask, step: jax.Array) -> Mask:
        number = jax.tree.map(_rounded, values_at(n, step, params))
        scores = score(apply_mask(params, mask))
        _checks.check_like(scores, params, "scores", "params")
        scores = jax.tree.map(lambda s, p: jnp.where(p, s, -jnp.inf), scores, mask)
        best = n_m_mask(scores, number, m, axis=axis, prunable=prunable)
        return jax.tree.map(jnp.logical_and, best, mask)

    return updated_mask("gradual_n_m", pruned, every, None)


def _rounded(n: Any) -> Any:
    return n if isinstance(n, int) else jnp.round(jnp.asarray(n)).astype(jnp.int32)
