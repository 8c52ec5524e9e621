"""Methods that prune during training, by the optimizer or by the forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.methods._before import static
from experiments.methods._start import Recipe, Setup, Start, StartFn, keep


def during(
    optimizer: Callable[..., Any] = keep,
    *,
    start: StartFn | None = None,
    **forward: Any,
) -> StartFn:
    """Prunes while training, from dense weights or from another method's start."""
    recipe = Recipe(optimizer, **forward)

    def begin(setup: Setup, sparsity: float) -> Start:
        found = setup.dense(0) if start is None else start(setup, sparsity)
        return found._replace(recipe=recipe)

    return begin


def window(setup: Setup) -> tuple[int, int]:
    """The first and the last step that prune; masks are due at both."""
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
    """Removes the smallest weights, step by step."""
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
    """Trains dense for some epochs, then chooses the fittest of k random masks."""

    def optimizer(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
        k, (begin, _) = setup.options.k, window(setup)
        link = jp.k_starts(key, k, sparsity, select_at=begin, **options)
        return optax.chain(tx, link)

    return during(optimizer)


def dissipating(*, threshold: float | None = None) -> StartFn:
    """Removes weights that stay near their start, by a schedule or a threshold."""

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
    """K-starts to the square root of the density, then dissipating to the density."""
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
    """Prunes gradually and regrows some of the weights."""
    del key
    schedule = cubic(sparsity, 0, window(setup)[1])
    return jp.granet(tx, schedule, **_moving(setup, 0.5))


def _moving(setup: Setup, fraction: float) -> dict[str, Any]:
    _, end = window(setup)
    decay = optax.cosine_decay_schedule(fraction, end)
    return {"every": setup.options.every, "until": end, "drop_fraction": decay}


@during
def ac_dc(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """Alternates dense and sparse phases, three of each, and stays sparse.

    The authors' code resets momentum when a dense phase begins; this does not.
    """
    del key
    length = -(-window(setup)[1] // 6)

    def alternate(params: Any, mask: Any, step: jax.Array) -> Any:
        del mask
        removed = jnp.where(step // length % 2 == 1, sparsity, 0.0)
        return jp.global_mask(jp.magnitude(params), removed)

    link = jp.update_mask(alternate, every=length, until=5 * length)
    return optax.chain(tx, link)


# Dense weights, trained through a sparse forward pass.


def _largest(params: Any, sparsity: Any, key: jax.Array, *, times: int = 1) -> Any:
    """The largest weights of each layer, ``times`` the number that the sparsity keeps.

    One threshold for all layers would empty some at once, and an empty layer passes no
    gradient on.
    """
    del key
    removed = jnp.maximum(1 - times * (1 - sparsity), 0)
    return jp.layerwise_mask(jp.magnitude(params), removed)


def _two_of_four(params: Any, sparsity: Any, key: jax.Array) -> Any:
    del sparsity, key
    return jp.n_m_mask(jp.magnitude(params), 2, 4, prunable=jp.divisible_by(4))


def _drawn(params: Any, sparsity: Any, key: jax.Array) -> Any:
    return jp.layerwise_mask(jp.random(key)(params), sparsity)


ste = during(forward=_largest)
top_kast = during(forward=_largest, backward=functools.partial(_largest, times=2))
sr_ste = during(forward=_two_of_four, decay=2e-4)
random_dropout = during(forward=_drawn, backward=_drawn)
