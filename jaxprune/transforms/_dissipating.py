"""Dissipating gradients: removes the weights that stay near their initial values."""

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
    sparsity: optax.ScalarOrSchedule | None = None,
    *,
    threshold: optax.ScalarOrSchedule | None = None,
    every: int | jax.Array,
    until: int | jax.Array | None,
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Removes the weights that stay near their initial values, whatever their size.

    This is the last link of an optax chain. Update k = 1, 2, ... prunes when
    ``k % every == 0`` and ``k <= until``. With :math:`\theta` the parameters before the
    update and :math:`\theta_0` the parameters at init, a ``threshold`` :math:`\tau`
    removes the weights with

    .. math:: |\theta - \theta_0| \le \tau \, |\theta_0| ,

    so the sparsity is an outcome that you may want to log. A ``sparsity`` removes that
    fraction exactly: the weights of smallest
    :math:`|\theta - \theta_0| \, / \, |\theta_0|`, with one threshold for all leaves.
    Removed weights stay removed. We could read only the paper's abstract. It gives the
    rule, weights "within a fraction of their initial value". The value of the fraction,
    the period, and pruning to a given sparsity are our choices.

    Weights that are exactly 0 before the update, for example because an earlier link
    removed them, count toward ``sparsity`` and are removed first. Weights that an
    earlier link removes in the same update are not seen yet. After `k_starts` in a
    chain, let ``sparsity`` be 0 up to and including the update ``select_at``.

    The ratio is undefined for :math:`\theta_0 = 0`; such weights are removed last, once
    they have moved. Exclude leaves that are initialized to zeros or another constant
    with ``prunable``.

    Weight decay :math:`\lambda` at learning rate :math:`\eta` moves every weight by a
    relative :math:`\eta \lambda` per update. So no weight stays within :math:`\tau` for
    more than about :math:`\tau / (\eta \lambda)` updates, and a gradient that balances
    the decay looks like no gradient. Start the decay later, or measure from a decayed
    start: ``optax.tree.set(opt_state, start=decayed)``.

    Args:
      sparsity: fraction of prunable weights removed, in [0, 1): a number, or an optax
        schedule of the number k of the update, as in `gradual`.
      threshold: the distance, as a fraction of its initial magnitude, that a weight
        must move to be kept: a number, at least 0, or an optax schedule. Negative
        values of a schedule remove nothing. Pass either this or ``sparsity``.
      every: updates between mask updates, at least 2, as no weight has moved at
        update 1.
      until: the last update that may prune, at least 1; None for no limit.
      prunable: which leaves to prune; the remaining leaves are kept whole.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `DissipatingState`.

    Raises:
      ValueError: unless exactly one of ``sparsity`` and ``threshold`` is given, or if
        an argument is out of range; at update, if ``params`` is missing or the
        gradients do not match it.
      TypeError: if ``threshold`` is not a number or a schedule; at update, if a leaf is
        not floating.

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
            "dissipating needs exactly one of sparsity, the fraction to remove, and "
            "threshold, the distance that a weight must move to be kept, as a number "
            f"or a schedule; got sparsity={sparsity!r} and threshold={threshold!r}."
        )
    if sparsity is not None and not callable(sparsity):
        _checks.check_sparsity(sparsity)
    if _checks.is_python_number(threshold) and not threshold >= 0:
        raise ValueError(
            "threshold is a fraction of a weight's initial magnitude, at least 0; got "
            f"{threshold}. For a tenth pass 0.1."
        )
    if not (
        threshold is None
        or callable(threshold)
        or isinstance(threshold, jax.Array)
        or _checks.is_python_number(threshold)
    ):
        raise TypeError(
            "threshold must be a number, a fraction of a weight's initial magnitude, "
            f"or a schedule; got {_checks.described(threshold)}."
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
        updates: optax.Updates, state: Any, params: Params | None = None, **extra: Any
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
