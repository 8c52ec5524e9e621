"""Masks found while training: optimizers that prune, and sparse forward passes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.methods._before import static
from experiments.methods._start import Forward, Recipe, Setup, Start, StartFn, keep


def during(
    optimizer: Callable[..., Any] = keep,
    *,
    forward: Forward | None = None,
    start: StartFn | None = None,
) -> StartFn:
    """Starts dense, or from another method's start, and prunes while training."""
    recipe = Recipe(optimizer, forward)

    def begin(setup: Setup, sparsity: float) -> Start:
        found = setup.dense(0) if start is None else start(setup, sparsity)
        return found._replace(recipe=recipe)

    return begin


def window(setup: Setup) -> tuple[int, int]:
    """The steps at which pruning in training begins and ends; masks are due at both."""
    every = setup.options.every
    begin = max(1, round(setup.options.select_at * setup.steps))
    end = max(every, round(setup.options.until * setup.steps) // every * every)
    return begin, max(end, begin + 2 * every)


def cubic(sparsity: Any, begin: int, length: int, start: Any = 0.0) -> Any:
    """Zhu & Gupta's schedule, from ``start`` to ``sparsity``."""
    return optax.polynomial_schedule(
        start, sparsity, power=3, transition_steps=length, transition_begin=begin
    )


@during
def gradual(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """Removes the smallest weights while training."""
    del key
    schedule = cubic(sparsity, 0, window(setup)[1])
    return optax.chain(tx, jp.gradual(schedule, every=setup.options.every))


@during
def gradual_n_m(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """Keeps 4, then 3, then 2 of every 4 weights."""
    del sparsity, key
    n = optax.linear_schedule(4, 2, transition_steps=window(setup)[1])
    every, fours = setup.options.every, jp.divisible_by(4)
    return optax.chain(tx, jp.gradual_n_m(n, 4, every=every, prunable=fours))


def k_starts(**options: Any) -> StartFn:
    """Chooses the fittest of k random masks after some dense epochs."""

    def optimizer(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
        k, (begin, _) = setup.options.k, window(setup)
        link = jp.k_starts(key, k, sparsity, select_at=begin, **options)
        return optax.chain(tx, link)

    return during(optimizer)


def dissipating(*, threshold: float | None = None) -> StartFn:
    """Removes weights that stay near their start: by a schedule, or a threshold."""

    def optimizer(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
        del key
        begin, end = window(setup)
        every = setup.options.every
        if threshold is None:
            schedule = cubic(sparsity, begin, end - begin)
            return optax.chain(tx, jp.dissipating(schedule, every=every, until=end))

        def near(step: Any) -> Any:
            return jnp.where(step > begin, jnp.float32(threshold), -1)

        return optax.chain(tx, jp.dissipating(threshold=near, every=every, until=end))

    return during(optimizer)


@during
def k_starts_dissipating(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """K-starts to half of the density's logarithm, then dissipating to the rest."""
    begin, end = window(setup)
    first = 1 - jnp.sqrt(1 - sparsity)
    ramp = cubic(sparsity, 0, end - begin - 1, first)
    then = optax.schedules.join_schedules([lambda _: 0.0, ramp], [begin + 1])
    return optax.chain(
        tx,
        jp.k_starts(key, setup.options.k, first, select_at=begin),
        jp.dissipating(then, every=setup.options.every, until=end),
    )


@functools.partial(during, start=static)
def set_training(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """Drops the smallest weights and regrows random ones."""
    del sparsity
    return jp.set_training(tx, None, key=key, **_moving(setup, 0.3))


@functools.partial(during, start=static)
def rigl(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """Drops the smallest weights and regrows those with the largest gradients."""
    del sparsity, key
    return jp.rigl(tx, None, **_moving(setup, 0.3))


@during
def granet(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """Gradual pruning that also regrows."""
    del key
    schedule = cubic(sparsity, 0, window(setup)[1])
    return jp.granet(tx, schedule, **_moving(setup, 0.5))


def _moving(setup: Setup, fraction: float) -> dict[str, Any]:
    """When masks move, and by how much."""
    _, end = window(setup)
    decay = optax.cosine_decay_schedule(fraction, end)
    return {"every": setup.options.every, "until": end, "drop_fraction": decay}


class _Phases(NamedTuple):
    """The state of AC/DC: updates made, and the state of the chain that it masks."""

    count: jax.Array
    inner: Any


_PHASES = 6  # Dense first; sparse last, and from then on.


@during
def ac_dc(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """Alternates dense and sparse phases, and ends sparse (Peste et al., 2021).

    Momentum restarts with each dense phase, as in the authors' code.
    """
    del key
    length = -(-window(setup)[1] // _PHASES)
    inner = optax.with_extra_args_support(optax.chain(tx, jp.keep_sparse()))

    def init(params: Any) -> _Phases:
        return _Phases(jnp.zeros([], jnp.int32), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, _Phases]:
        phase = state.count // length
        begins = (state.count % length == 0) & (phase < _PHASES)

        def begun(opt_state: Any) -> Any:
            cut = phase % 2 == 1
            opt_state = optax.tree.map_params(
                inner, lambda x: jnp.where(cut, x, jnp.zeros_like(x)), opt_state
            )
            removed = jnp.where(cut, sparsity, 0.0)
            mask = jp.global_mask(jp.magnitude(params), removed)
            return jp.set_mask(opt_state, mask)

        opt_state = jax.lax.cond(begins, begun, lambda same: same, state.inner)
        updates, opt_state = inner.update(updates, opt_state, params, **extra)
        return updates, _Phases(state.count + 1, opt_state)

    return optax.GradientTransformationExtraArgs(init, update)


# Dense weights, trained through a sparse forward pass.


def _largest(params: Any, sparsity: Any, key: jax.Array, *, times: int = 1) -> Any:
    """The largest weights of each layer, ``times`` the number that the sparsity keeps.

    One threshold for all layers would empty some from the start, and an empty layer
    lets no gradient through.
    """
    del key
    removed = jnp.maximum(1 - times * (1 - sparsity), 0)
    return jp.layerwise_mask(jp.magnitude(params), removed)


def _two_of_four(params: Any, sparsity: Any, key: jax.Array) -> Any:
    del sparsity, key
    return jp.n_m_mask(jp.magnitude(params), 2, 4, prunable=jp.divisible_by(4))


def _drawn(params: Any, sparsity: Any, key: jax.Array) -> Any:
    return jp.layerwise_mask(jp.random(key)(params), sparsity)


ste = during(forward=Forward(_largest))
top_kast = during(forward=Forward(_largest, functools.partial(_largest, times=2)))
sr_ste = during(forward=Forward(_two_of_four, decay=2e-4))
random_dropout = during(forward=Forward(_drawn, reached=_drawn))
