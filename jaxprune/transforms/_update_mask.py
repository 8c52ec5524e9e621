"""A mask that a function computes anew while training, whenever it is due."""

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
    r"""Prunes while training with masks of your own: the last link of an optax chain.

    Update k = 1, 2, ... takes the mask ``fn(params, mask, k)`` when ``k % every == 0``
    and ``k <= until``, and every update enforces the mask in use, as `keep_sparse`
    does. Before the first due update nothing is pruned. `gradual` and `gradual_n_m` are
    this link with functions of their own.

    Args:
      fn: ``fn(params, mask, step) -> mask``. It is traced, and called with the
        parameters that the update is given, the mask so far and the number of the
        update. A weight that the new mask brings back starts at 0; return
        ``jax.tree.map(jnp.logical_and, new, mask)`` if pruned weights must stay pruned.
      every: updates between mask updates, at least 1.
      until: the last update that may change the mask; None is for ever.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseState`.

    Raises:
      ValueError: if ``every < 1`` or ``until`` comes before the first due update; at
        update, without ``params``, with gradients that are not like them, or if ``fn``
        returns a mask that is not.
      TypeError: if ``fn`` is not a function, or its mask is not bool; at init, if a
        parameter is not floating.

    Example:
      Each layer loses half of its weights at update 2:

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
    """`update_mask` under another name, for errors."""
    due = due_updates(every, until, least=1)

    def init(params: Params) -> SparseState:
        if jax.tree.leaves(params):
            _checks.check_floating(params, "params")
        return SparseState(jnp.zeros([], jnp.int32), initial_mask(None, params))

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra: Any
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
