"""Methods that choose their mask while training: optimizers that prune."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.config import Pruning
from experiments.models import Network
from experiments.pruners._before import erk_mask
from experiments.pruners._types import Factory, Pruner, Recipe


def gradual(config: Pruning, network: Network, steps: int) -> Pruner:
    """Removes the smallest weights while training, along Zhu & Gupta's cubic."""
    del network
    every, (_, ramp) = config.every, _window(config, steps)
    return _linked(
        lambda sparsity, key: jp.gradual(_cubic(sparsity, 0, ramp), every=every)
    )


def gradual_n_m(config: Pruning, network: Network, steps: int) -> Pruner:
    """Keeps 4, then 3, then 2 of every 4 weights."""
    del network
    every, (_, end) = config.every, _window(config, steps)

    n = optax.linear_schedule(4, 2, transition_steps=end)
    link = jp.gradual_n_m(n, 4, every=every, prunable=jp.divisible_by(4))
    return _linked(lambda sparsity, key: link)


def ac_dc(config: Pruning, network: Network, steps: int) -> Pruner:
    """Trains dense and sparse in turns, and sparse in the end (Peste et al., 2021).

    Momentum starts anew with each dense phase, as the authors have it.
    """
    del network
    _, end = _window(config, steps)
    length = -(-end // _PHASES)

    def wrap(tx: optax.GradientTransformation, sparsity: Any, key: Any) -> Any:
        del key
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

    return Pruner(None, Recipe(wrap))


class _Phases(NamedTuple):
    """The state of AC/DC: updates made, and the state of the chain that it masks."""

    count: jax.Array
    inner: Any


_PHASES = 6  # Dense first, sparse last, and from there on.


def k_starts(**options: Any) -> Factory:
    """Chooses the fittest of k random masks after some dense epochs."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del network
        begin, _ = _window(config, steps)
        return _linked(
            lambda sparsity, key: jp.k_starts(
                key, config.k, sparsity, select_at=begin, **options
            )
        )

    return factory


def dissipating(*, threshold: float | None = None) -> Factory:
    """Removes what stays near its start: along the cubic, or within a threshold."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del network
        begin, end = _window(config, steps)
        linked = functools.partial(jp.dissipating, every=config.every, until=end)

        def link(sparsity: Any, key: jax.Array) -> optax.GradientTransformation:
            del key
            if threshold is not None:
                near = jnp.float32(threshold)
                return linked(threshold=lambda step: jnp.where(step > begin, near, -1))
            return linked(_cubic(sparsity, begin, end - begin))

        return _linked(link)

    return factory


def k_starts_dissipating(config: Pruning, network: Network, steps: int) -> Pruner:
    """K-starts to half of the density's logarithm, then dissipating to the rest."""
    del network
    begin, end = _window(config, steps)

    def link(sparsity: Any, key: jax.Array) -> optax.GradientTransformation:
        first = 1 - jnp.sqrt(1 - sparsity)
        ramp = _cubic(sparsity, 0, end - begin - 1, first)
        then = optax.schedules.join_schedules([lambda _: 0.0, ramp], [begin + 1])
        return optax.chain(
            jp.k_starts(key, config.k, first, select_at=begin),
            jp.dissipating(then, every=config.every, until=end),
        )

    return _linked(link)


def dynamic(transform: Callable[..., Any]) -> Factory:
    """Starts from the static mask, and moves it: ``transform(tx, key, options)``."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del network
        _, until = _window(config, steps)
        fraction = optax.cosine_decay_schedule(0.3, until)
        options = {"every": config.every, "until": until, "drop_fraction": fraction}

        def wrap(tx: optax.GradientTransformation, sparsity: Any, key: Any) -> Any:
            del sparsity
            return transform(tx, key, options)

        return Pruner(erk_mask, Recipe(wrap))

    return factory


def granet(config: Pruning, network: Network, steps: int) -> Pruner:
    """Gradual pruning that regrows on its way."""
    del network
    _, end = _window(config, steps)

    def wrap(tx: optax.GradientTransformation, sparsity: Any, key: Any) -> Any:
        del key
        return jp.granet(
            tx,
            _cubic(sparsity, 0, end),
            every=config.every,
            until=end,
            drop_fraction=optax.cosine_decay_schedule(0.5, end),
        )

    return Pruner(None, Recipe(wrap))


def _linked(link: Callable[[Any, jax.Array], Any]) -> Pruner:
    """Starts dense, with ``link(sparsity, key)`` the last of the chain."""

    def wrap(tx: optax.GradientTransformation, sparsity: Any, key: jax.Array) -> Any:
        return optax.chain(tx, link(sparsity, key))

    return Pruner(None, Recipe(wrap))


def _window(config: Pruning, steps: int) -> tuple[int, int]:
    """The steps at which pruning in training begins, and has ended: due ones."""
    every = config.every
    begin = max(1, round(config.select_at * steps))
    end = max(every, round(config.until * steps) // every * every)
    return begin, max(end, begin + 2 * every)


def _cubic(sparsity: Any, begin: int, length: int, start: Any = 0.0) -> Any:
    """Zhu & Gupta's schedule, from ``start`` to ``sparsity``."""
    return optax.polynomial_schedule(
        start, sparsity, power=3, transition_steps=length, transition_begin=begin
    )
