"""JaxPruner's way to move masks, re-stated: a sort of every leaf under ``lax.cond``.

Its source is not on PyPI, so this is its algorithm in our words and not its code: the
new mask of a leaf keeps the first of its argsorted scores, and ``cond`` decides whether
the step is due. Under ``vmap``, where a ``cond`` becomes a ``select``, it is computed
in every step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp

NewMask = Callable[[Any, Any, Any, jax.Array], Any]


class ArgsortState(NamedTuple):
    """Updates made, the mask in use, and the wrapped optimizer's state."""

    count: jax.Array
    mask: Any
    inner: Any


def wrap(
    inner: optax.GradientTransformation, mask: Any, new_mask: NewMask, every: int
) -> optax.GradientTransformation:
    """Masks parameters after every update, and the mask moves when it is due."""

    def init(params: Any) -> ArgsortState:
        copied = jax.tree.map(jnp.copy, mask)
        return ArgsortState(jnp.zeros([], jnp.int32), copied, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        count = state.count + 1
        moved = jax.lax.cond(
            count % every == 0,
            lambda: new_mask(params, updates, state.mask, count),
            lambda: state.mask,
        )
        updates, opt_state = inner.update(updates, state.inner, params)
        updates = jax.tree.map(
            lambda u, p, m: jnp.where(m, u, -p), updates, params, moved
        )
        return updates, ArgsortState(count, moved, opt_state)

    return optax.GradientTransformation(init, update)


def gradual(schedule: optax.Schedule) -> NewMask:
    """Keeps the largest weights of every leaf, as many as the schedule leaves."""

    def new_mask(params: Any, gradient: Any, mask: Any, count: jax.Array) -> Any:
        del gradient
        kept = 1 - schedule(count)
        return _each(
            lambda p, m: first(jnp.abs(p), jnp.round(kept * p.size)), params, mask
        )

    return new_mask


def set_training(fraction: float) -> NewMask:
    """Drops the smallest weights, and grows as many at random."""

    def new_mask(params: Any, gradient: Any, mask: Any, count: jax.Array) -> Any:
        del gradient
        key = jax.random.fold_in(jax.random.key(0), count)
        return _each(
            lambda p, m: _moved(p, jax.random.uniform(key, p.shape), m, fraction),
            params,
            mask,
        )

    return new_mask


def rigl(fraction: float) -> NewMask:
    """Drops the smallest weights, and grows as many by their gradients."""

    def new_mask(params: Any, gradient: Any, mask: Any, count: jax.Array) -> Any:
        del count
        return _each(
            lambda p, m, g: _moved(p, jnp.abs(g), m, fraction), params, mask, gradient
        )

    return new_mask


def _moved(
    weights: jax.Array, growth: jax.Array, mask: jax.Array, fraction: float
) -> jax.Array:
    active = mask.sum()
    dropped = jnp.round(fraction * active)
    kept = first(jnp.where(mask, jnp.abs(weights), -1.0), active - dropped)
    return kept | first(jnp.where(mask, -1.0, growth), dropped)


def first(scores: jax.Array, count: Any) -> jax.Array:
    """The mask of the ``count`` largest scores of a leaf, by an argsort."""
    order = jnp.argsort(-scores.ravel())
    flat = jnp.zeros(scores.size, bool).at[order].set(jnp.arange(scores.size) < count)
    return flat.reshape(scores.shape)


def _each(function: Callable[..., Any], params: Any, mask: Any, *rest: Any) -> Any:
    return jax.tree.map(
        lambda flag, p, m, *r: function(p, m, *r) if flag else m,
        jp.matrices(params),
        params,
        mask,
        *rest,
    )
