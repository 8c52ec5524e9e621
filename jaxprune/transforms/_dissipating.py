"""Dissipating gradients: weights that stay near where they started are removed."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Mask, Params, Prunable
from jaxprune.core import _checks
from jaxprune.core._dtypes import upcast_half
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.masks._threshold import apply_mask, global_mask
from jaxprune.transforms._keep_sparse import (
    incremented,
    require_params,
    value_at,
    zero_pruned,
    zeros_first,
)
from jaxprune.transforms._state import copied_like, initial_mask
from jaxprune.transforms._states import DissipatingState
from jaxprune.transforms._when_due import check_window, when_due


def dissipating(
    sparsity: Any = None,
    *,
    threshold: Any = None,
    every: int | jax.Array,
    until: int | jax.Array | None,
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the weights that stay near where they started, whatever their size.

    The last link of an optax chain. Update k = 1, 2, ... looks at the parameters
    :math:`\theta` that it is given when ``k % every == 0`` and ``k <= until``. With
    :math:`\theta_0` the parameters at init, it removes the weights of

    .. math:: |\theta - \theta_0| \le \tau \, |\theta_0|

    for a ``threshold`` :math:`\tau`: the sparsity is an outcome (log `sparsity`). Or,
    for a ``sparsity``, those of least :math:`|\theta - \theta_0| \, / \, |\theta_0|`,
    by one threshold for all leaves, until that fraction is removed exactly. What is
    removed stays removed. Our reading of a paper of which only the abstract was at
    hand: "within a fraction of their initial value" is its rule; the value of the
    fraction, how often to look, and removal to a set sparsity are choices.

    A weight that is exactly 0 in the parameters given, say by a link before this one,
    counts toward ``sparsity`` as the first to go. One that such a link prunes in the
    same update is seen by the next: behind `k_starts`, let ``sparsity`` be 0 up to and
    including its ``select_at``.

    Where :math:`\theta_0 = 0` the ratio is undefined: such a weight goes last once it
    has moved. Values are not looked at to find leaves initialised to zeros or another
    constant: leave them out by ``prunable``.

    Weight decay alone moves every weight: by a relative :math:`\eta \lambda` an update
    at learning rate :math:`\eta` and decay :math:`\lambda`, so that no weight stays
    within :math:`\tau` for longer than about :math:`\tau / (\eta \lambda)` updates, and
    a gradient that works against the decay looks like none. Decay later, or measure
    from the decayed start: ``optax.tree.set(opt_state, start=decayed)``.

    Args:
      sparsity: fraction of prunable weights removed, in [0, 1): a number, or an optax
        schedule of the update's number k, as in `gradual`.
      threshold: how far, as a fraction of its start, a weight must move to stay; at
        least 0, or an optax schedule, which removes nothing where it is negative. Pass
        either this or ``sparsity``.
      every: updates between looks, at least 2: at update 1 no weight has moved.
      until: the last update that may look, at least 1; None for no last one.
      prunable: which leaves take part.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `DissipatingState`.

    Raises:
      ValueError: unless one of ``sparsity`` and ``threshold`` is given, or if one, or
        ``every`` or ``until``, is out of range; at update, without ``params``,
        or with gradients that are not like them.
      TypeError: at update, if a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, -1.0, 10.0, 10.0]])}
      >>> link = jp.dissipating(threshold=0.1, every=2, until=2)
      >>> tx = optax.chain(optax.sgd(0.3), link)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = {"w": jnp.array([[1.0, 0.1, 1.0, 5.0]])}
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> optax.tree.get(state, "mask")
      {'w': Array([[ True, False, False,  True]], dtype=bool)}

    References:
      Haroon, `What to Prune and What Not to Prune at Initialization
      <https://arxiv.org/abs/2209.02201>`_, 2022.
    """
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            "dissipating takes either sparsity=, the fraction to remove, or "
            "threshold=, how far a weight must move to stay: one number, not two; got "
            f"sparsity={sparsity!r} and threshold={threshold!r}."
        )
    if sparsity is not None and not callable(sparsity):
        _checks.check_sparsity(sparsity)
    known = _checks.is_python_number(threshold)
    if known and not threshold >= 0:
        raise ValueError(
            "threshold is a fraction of a weight's start, at least 0; got "
            f"{threshold}. For a tenth pass 0.1."
        )
    number = known or isinstance(threshold, jax.Array) or callable(threshold)
    if threshold is not None and not number:
        raise TypeError(
            "threshold must be a number, how far a weight must move as a fraction of "
            f"its start, or a schedule; got {_checks.described(threshold)}."
        )
    _checks.check_count(every, "every", "updates", least=2)
    if until is not None:
        _checks.check_count(until, "until", "updates")
        check_window(every, until)

    def init(params: Params) -> DissipatingState:
        return DissipatingState(
            step=jnp.zeros([], jnp.int32),
            mask=initial_mask(None, params),
            start=jax.tree.map(copied_like, params, params),
        )

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, DissipatingState]:
        del extra
        given = require_params(params, updates, "dissipating")
        _checks.check_floating(given, "params")
        step = incremented(state.step)

        def moved(mask: Mask) -> Mask:
            least: Any = value_at(threshold, step)
            stays = jax.tree.map(
                lambda m, a, b: m & (jnp.abs(a - b) > least * jnp.abs(b)),
                mask,
                upcast_half(given),
                upcast_half(state.start),
            )
            flags = jax.tree.structure(mask).unflatten(select_prunable(given, prunable))
            return jax.tree.map(lambda f, s, m: s if f else m, flags, stays, mask)

        def most_moved(mask: Mask) -> Mask:
            target = value_at(sparsity, step)
            ratio = jax.tree.map(
                lambda a, b: jnp.abs(a - b) / jnp.abs(b),
                upcast_half(given),
                upcast_half(state.start),
            )
            scores = zeros_first(ratio, apply_mask(given, mask))
            return global_mask(scores, target, prunable=prunable, prior=mask)

        due = step % every == 0
        if until is not None:
            due = due & (step <= until)
        choice = moved if sparsity is None else most_moved
        mask = when_due(due, choice, state.mask)
        return zero_pruned(updates, mask, given), DissipatingState(
            step, mask, state.start
        )

    return optax.GradientTransformationExtraArgs(init, update)
