"""Training with a fixed mask: optax transformations that hold it in their state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Mask, Params, Scores
from jaxprune.core import _checks
from jaxprune.transforms._state import initial_mask
from jaxprune.transforms._states import SparseState, SparseWrapperState


def keep_sparse(
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps pruned weights at exactly 0: the last link of an optax chain.

    .. math:: u_i \mapsto u_i \text{ where } m_i, \text{ else } -\theta_i

    After ``optax.apply_updates`` a pruned weight is exactly 0, from the first update
    on, despite momentum, weight decay or rewinding. Nothing else in the training loop
    changes. To make the first forward pass sparse too, start from
    ``apply_mask(params, mask)``. That is also needed if a pruned weight is infinite or
    NaN, because no added update makes it 0.

    Args:
      mask: a tree of bool like the parameters, ``True`` = kept. It is copied into the
        state. None starts with all True, for abstract initialization, before a
        checkpoint is restored, or before `set_mask`.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseState`. Inside
      ``optax.masked`` and ``optax.partition`` it uses the visible leaves of the mask.

    Raises:
      ValueError: at init, if the mask does not match the parameters or keeps no weight
        at all; at update, if ``params`` is missing or the gradients do not match it.
      TypeError: at init, if the mask is not bool.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> mask = {"w": jnp.array([True, False])}
      >>> tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(mask))
      >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([0.9, 0. ], dtype=float32)}
    """

    def init(params: Params) -> SparseState:
        return SparseState(jnp.zeros([], jnp.int32), initial_mask(mask, params))

    def update(
        updates: optax.Updates, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, SparseState]:
        del extra
        params = require_params(params, updates, "keep_sparse")
        step = incremented(state.step)
        return zero_pruned(updates, state.mask, params), SparseState(step, state.mask)

    return optax.GradientTransformationExtraArgs(init, update)


def sparse(
    inner: optax.GradientTransformation, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer so that it sees and updates kept weights only.

    The optimizer gets a gradient of 0 for pruned weights, so clipping, norms and
    moments depend on kept weights only. The wrapper then keeps pruned weights at
    exactly 0, as `keep_sparse` does. Both use one mask, in one state.

    Args:
      inner: any optax transformation.
      mask: a tree of bool like the parameters, ``True`` = kept. It is copied into the
        state. None starts with all True, as in `keep_sparse`.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseWrapperState`.

    Raises:
      ValueError: at init, if the mask does not match the parameters or keeps no weight
        at all; at update, if ``params`` is missing or the gradients do not match it.
      TypeError: if ``inner`` is not an optax transformation; at init, if the mask is
        not bool.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
      >>> tx = jp.sparse(clipped, {"w": jnp.array([True, False])})
      >>> updates, _ = tx.update({"w": jnp.array([0.5, 9.0])}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([0.5, 0. ], dtype=float32)}
    """
    _checks.check_optimizer(inner, "sparse")
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparseWrapperState:
        step = jnp.zeros([], jnp.int32)
        return SparseWrapperState(step, initial_mask(mask, params), inner.init(params))

    def update(
        updates: optax.Updates, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, SparseWrapperState]:
        params = require_params(params, updates, "sparse")
        updates = zeroed(updates, state.mask)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        step = incremented(state.step)
        return (
            zero_pruned(updates, state.mask, params),
            SparseWrapperState(step, state.mask, inner_state),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def zeroed(updates: optax.Updates, mask: Mask) -> Any:
    """Sets the updates of pruned weights to 0, even if they are NaN."""
    return jax.tree.map(lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), updates, mask)


def zero_pruned(updates: optax.Updates, mask: Mask, params: Params) -> Any:
    """Replaces the updates of pruned weights by those that make them exactly 0."""
    return jax.tree.map(
        lambda u, m, p: jnp.where(m, u.astype(p.dtype), -p), updates, mask, params
    )


def zeros_first(scores: Scores, params: Params) -> Scores:
    """Ranks weights that are exactly 0, and so already removed, below all others."""
    return jax.tree.map(lambda s, p: jnp.where(p != 0, s, -jnp.inf), scores, params)


def incremented(step: jax.Array) -> jax.Array:
    """Returns the next step, or the largest int32 instead of overflowing."""
    return jnp.asarray(optax.safe_increment(step))


def require_params(params: Params | None, updates: optax.Updates, name: str) -> Params:
    """Returns the parameters; raises if they are missing or unlike the updates."""
    if params is None:
        raise ValueError(
            f"jaxprune.{name} needs the parameters to keep pruned weights at 0. Pass "
            "them to update: tx.update(grads, opt_state, params)."
        )
    _checks.check_like(updates, params, f"jaxprune.{name}: grads", "params")
    return params


def value_at(value: Any, step: jax.Array) -> Any:
    """Returns the value of a schedule at a step; numbers are returned unchanged."""
    return value(step) if callable(value) else value
