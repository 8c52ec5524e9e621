"""Training with a mask that a function recomputes at regular intervals."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Mask, Params
from jaxprune.core import _checks
from jaxprune.transforms._keep_sparse import (
    incremented,
    require_params,
    zero_pruned,
)
from jaxprune.transforms._state import initial_mask
from jaxprune.transforms._states import SparseState
from jaxprune.transforms._when_due import due_updates, when_due

MaskFn: TypeAlias = Callable[[Params, Mask, jax.Array], Mask]


def update_mask(
    fn: MaskFn,
    *,
    every: int | jax.Array = 1,
    until: int | jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Recomputes the mask with your function: the last link of an optax chain.

    Update k = 1, 2, ... replaces the mask by ``fn(params, mask, k)`` when
    ``k % every == 0`` and ``k <= until``. Every update keeps pruned weights at 0, as
    `keep_sparse` does. Before the first mask update nothing is pruned. `gradual` and
    `gradual_n_m` are built on this link.

    Args:
      fn: ``fn(params, mask, step) -> mask``, a traceable function of the parameters
        before the update, the current mask and the number of the update. Weights that
        the new mask brings back start at 0. If pruned weights must stay pruned, return
        ``jax.tree.map(jnp.logical_and, new, mask)``.
      every: updates between mask updates, at least 1. In a training run shorter than
        this, nothing is pruned.
      until: the last update that may change the mask; None for no limit.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseState`.

    Raises:
      ValueError: if ``every < 1`` or ``until`` comes before the first mask update; at
        update, if ``params`` is missing, or the gradients or the mask that ``fn``
        returns do not match it.
      TypeError: if ``fn`` is not a function; at init, if a parameter is not floating;
        at update, if the mask that ``fn`` returns is not bool.

    Example:
      This link removes half of the weights of each layer at update 2:

      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> halve = lambda params, mask, step: jp.layerwise_mask(
      ...     jp.magnitude(params), 0.5, prior=mask)
      >>> tx = optax.chain(optax.sgd(0.1), jp.update_mask(halve, every=2, until=2))
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> optax.tree.get(state, "mask")
      {'w': Array([[False, False,  True,  True]], dtype=bool)}
    """
    _checks.check_callable(fn, "fn", "fn(params, mask, step) -> mask")
    return updated_mask("update_mask", fn, every, until)


def updated_mask(
    name: str,
    fn: MaskFn,
    every: int | jax.Array,
    until: int | jax.Array | None,
) -> optax.GradientTransformationExtraArgs:
    """Builds `update_mask` with the name of another transformation in its errors."""
    due = due_updates(every, until, least=1)

    def init(params: Params) -> SparseState:
        if jax.tree.leaves(params):
            _checks.check_floating(params, "params")
        return SparseState(jnp.zeros([], jnp.int32), initial_mask(None, params))

    def update(
        updates: optax.Updates, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, SparseState]:
        del extra
        given = require_params(params, updates, name)
        step = incremented(state.step)

        def updated(mask: Mask) -> Mask:
            new = fn(given, mask, step)
            _checks.check_mask(new, given, f"jaxprune.{name}: the new mask")
            return new

        mask = when_due(due(step), updated, state.mask)
        return zero_pruned(updates, mask, given), SparseState(step, mask)

    return optax.GradientTransformationExtraArgs(init, update)
