"""Masks that move: the wrapper around an optimizer, and the drop-and-grow step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune._types import Mask, Params, Scores
from jaxprune.core import _checks, _uint64
from jaxprune.core._cut import entries
from jaxprune.masks import _counting, _selection
from jaxprune.transforms._keep_sparse import (
    incremented,
    require_params,
    zero_pruned,
    zeroed,
)
from jaxprune.transforms._reset_state import check_resettable, check_steady, fresh_where
from jaxprune.transforms._when_due import when_due


def moving(
    name: str,
    inner: optax.GradientTransformation,
    init_state: Callable[[Params, Any], Any],
    due: Callable[[jax.Array], jax.Array],
    moved: Callable[[Any, Any, Mask], tuple[Mask, Mask, Any]],
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer as `sparse` does, around a mask that moves when it is due.

    Args:
      name: the transform's name, for errors.
      inner: the optimizer.
      init_state: the parameters and the optimizer's state to the wrapper's state.
      due: tells of the update's number whether the mask moves.
      moved: parameters, gradient and number, the state, and the mask in use to what
        `drop_and_grow` returns.
    """
    _checks.check_optimizer(inner, name)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> Any:
        if jax.tree.leaves(params):
            _checks.check_floating(params, "params")
            check_resettable(inner, params, name)
        return init_state(params, inner.init(params))

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        params = require_params(params, updates, name)
        step = incremented(state.step)

        # The loop of when_due updates these in place, so other steps cost nothing.
        def move(value: tuple[Mask, Any, Any, Any]) -> tuple[Mask, Any, Any, Any]:
            mask, gradient, inner_state, _ = value
            mask, grown, grew = moved((params, gradient, step), state, mask)
            seen = jax.tree.map(lambda m, new: m & ~new, mask, grown)
            inner_state = fresh_where(grown, inner_state, inner, params)
            return mask, zeroed(gradient, seen), inner_state, grew

        still = jax.tree.map(lambda m: jnp.zeros_like(m, shape=()), state.mask)
        mask, gradient, inner_state, grew = when_due(
            due(step), move, (state.mask, updates, state.inner_state, still)
        )
        gradient = zeroed(gradient, mask)
        updates, inner_state = inner.update(gradient, inner_state, params, **extra)
        check_steady(state.inner_state, inner_state, name)
        # Regrown weights start at 0 with a zero gradient, but some optimizers still
        # move them. Telling them from other zeros would need an array that is written
        # on every step, so in leaves where something grew all zeros wait.
        trained = jax.tree.map(
            lambda m, p, new: m & (~new | (p != 0)), mask, params, grew
        )
        state = state._replace(step=step, mask=mask, inner_state=inner_state)
        return zero_pruned(updates, trained, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def drop_and_grow(
    before: Mask, mask: Mask, params: Params, growth: Scores, fraction: Any
) -> tuple[Mask, Mask, Any]:
    r"""Drops the smallest weights of each leaf and grows weights that were pruned.

    Args:
      before: the mask in use; what it keeps cannot be grown.
      mask: what may be kept on, inside ``before``.
      params: those of least magnitude are dropped.
      growth: those of largest magnitude are grown.
      fraction: of the kept weights that move.

    Returns:
      A mask that keeps as many weights of each leaf as ``mask`` does, the weights grown
      in it, and for each leaf whether there are any.
    """
    structure = jax.tree.structure(mask)
    trees = map(jax.tree.leaves, (before, mask, params, growth))
    leaves = list(zip(*trees, strict=True))

    def exchange(members: list[int]) -> list[tuple[jax.Array, ...]]:
        used, kept, sizes, gains = zip(*_selection.pick(leaves, members), strict=True)
        numbers = _counting.count_true(kept)
        total = _uint64.wide([leaf.size for leaf in used])
        room = _uint64.subtract(total, _counting.count_true(used))
        moved = jax.vmap(_uint64.scaled, (None, 0))(fraction, numbers)
        moved = _uint64.minimum(moved, room)
        left = _uint64.subtract(numbers, moved)
        each = np.arange(len(members))
        stay = _selection.mark(sizes, left, kept, each, of=jnp.abs)
        grow = _selection.mark(gains, moved, None, each, excluded=used, of=jnp.abs)
        # One byte says both, so that leaves are taken apart once.
        marks = [s + 2 * g.astype(jnp.uint8) for s, g in zip(stay, grow, strict=True)]
        marks = _selection.deal(marks, sizes)
        grew = entries((moved.high | moved.low) != 0)
        return [(m > 0, m > 1, some) for m, some in zip(marks, grew, strict=True)]

    moved = _selection.apart(jax.tree.leaves(params), exchange)
    return tuple(
        jax.tree.unflatten(structure, part) for part in zip(*moved, strict=True)
    )


def check_drop_fraction(drop_fraction: Any) -> None:
    """Raises unless it is a schedule, or a number in [0, 1)."""
    if not callable(drop_fraction):
        _checks.check_fraction(
            drop_fraction, "drop_fraction", "of a leaf's kept weights to move"
        )
