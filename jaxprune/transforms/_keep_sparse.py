"""Sparse training as optax transformations: the mask lives in the optimizer state."""

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

    .. math:: u_i \mapsto u_i \text{ where } m_i, \text{ else } -\theta_i,

    so that after ``optax.apply_updates`` a pruned weight is exactly 0 from the first
    update on, whatever momentum, weight decay or rewinding would make of it. The rest
    of the training loop does not change. Start from ``apply_mask(params, mask)`` if the
    first forward pass is to be sparse too, or if a pruned weight is infinite or NaN: no
    update that is added makes that 0.

    Args:
      mask: a tree of bool like the parameters, ``True`` = kept; copied into the state.
        None starts from all True: for abstract initialisation, before a checkpoint is
        restored or `set_mask` is called.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseState`. Inside
      ``optax.masked`` and ``optax.partition`` the mask is narrowed to the leaves seen.

    Raises:
      ValueError: at init, if the mask does not match the parameters or keeps nothing
        anywhere; at update, without ``params``,
        or with gradients that are not like them.
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
        updates: Any, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, SparseState]:
        del extra
        params = require_params(params, updates, "keep_sparse")
        step = incremented(state.step)
        return zero_pruned(updates, state.mask, params), SparseState(step, state.mask)

    return optax.GradientTransformationExtraArgs(init, update)


def sparse(
    inner: optax.GradientTransformation, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer so that it sees and moves kept weights only.

    Gradients of pruned weights are 0 on the way in, so that clipping, norms and moments
    are those of the kept weights, and the mask is enforced on the way out as by
    `keep_sparse`. One mask, in one state.

    Args:
      inner: any optax transformation.
      mask: a tree of bool like the parameters, ``True`` = kept; copied into the state.
        None starts from all True.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseWrapperState`.

    Raises:
      ValueError: at init, if the mask does not match the parameters or keeps nothing
        anywhere; at update, without ``params``,
        or with gradients that are not like them.
      TypeError: at init, if the mask is not bool.

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
        updates: Any, state: Any, params: Params | None = None, **extra: Any
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


def zeroed(updates: Any, mask: Mask) -> Any:
    """Hides the gradients of pruned weights, a NaN among them too."""
    return jax.tree.map(lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), updates, mask)


def zero_pruned(updates: Any, mask: Mask, params: Params) -> Any:
    """Sends the pruned weights to exactly 0, in the parameters' dtype."""
    return jax.tree.map(
        lambda u, m, p: jnp.where(m, u.astype(p.dtype), -p), updates, mask, params
    )


def zeros_first(scores: Scores, params: Params) -> Scores:
    """Has the weights that are exactly 0, and so removed already, go first."""
    return jax.tree.map(lambda s, p: jnp.where(p != 0, s, -jnp.inf), scores, params)


def incremented(step: jax.Array) -> jax.Array:
    """The next step, which stays at the largest int32 instead of overflowing."""
    return jnp.asarray(optax.safe_increment(step))


def require_params(params: Params | None, updates: Any, name: str) -> Params:
    """Returns the parameters if the updates are like them, or says what is missing."""
    if params is None:
        raise ValueError(
            f"jaxprune.{name} needs the parameters to keep pruned weights at 0. Call "
            "tx.update(grads, opt_state, params)."
        )
    _checks.check_like(updates, params, f"jaxprune.{name}: grads", "params")
    return params


def value_at(value: Any, step: jax.Array) -> Any:
    """A schedule's value at a step, or the number that it is."""
    return value(step) if callable(value) else value
