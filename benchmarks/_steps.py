"""A train step, and one that a benchmark calls over and over, on the state it left."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks._models import Problem


def step_fn(
    loss: Callable[..., jax.Array], tx: optax.GradientTransformation
) -> Callable[..., tuple[Any, Any]]:
    """Builds ``step(params, opt_state, *batch) -> (params, opt_state)``."""
    gradient_fn = jax.grad(loss)

    def step(params: Any, opt_state: Any, *batch: Any) -> tuple[Any, Any]:
        gradient = gradient_fn(params, *batch)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def train_step(
    problem: Problem,
    tx: optax.GradientTransformation,
    *,
    loss: Callable[..., jax.Array] | None = None,
    params: Any = None,
    seeds: int | None = None,
) -> Callable[[], tuple[Any, Any]]:
    """A function that takes the next step, compiled, its state donated.

    Args:
      problem: the network and its batch.
      tx: the optimizer.
      loss: another loss than the problem's.
      params: other weights than the problem's to start from.
      seeds: so many networks, each with a batch of its own, in one vmapped step; None
        is one, without vmap.
    """
    step = step_fn(problem.loss if loss is None else loss, tx)
    init, batch = tx.init, problem.batch
    params = jax.tree.map(jnp.copy, problem.params if params is None else params)
    if seeds is not None:
        step, init = jax.vmap(step), jax.vmap(init)
        params, batch = jax.tree.map(
            lambda x: jnp.stack([x] * seeds), (params, problem.batch)
        )
    state = (params, init(params))
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*state, *batch)
    compiled = lowered.compile()
    jax.block_until_ready(compiled(*jax.tree.map(jnp.copy, state), *batch))

    def take() -> tuple[Any, Any]:
        nonlocal state
        state = compiled(*state, *batch)
        return state

    return take
