"""Methods that train several networks to find one mask."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.methods._start import Start, stacked, unstacked

if TYPE_CHECKING:
    from experiments.lab import Lab


def imp(lab: Lab, sparsity: float) -> Start:
    """Iterative magnitude pruning with rewinding (Frankle et al., 2020).

    One chain of trainings serves all sparsities of the experiment, and runs once.
    """
    options = lab.options
    saved = lab.dense(options.rewind)
    if not options.keep_optimizer:
        saved = saved._replace(opt_state=None)
    asked = {*options.sparsities} if "imp" in options.methods else set()
    if "imp" in options.checked:
        asked.add(options.check_sparsity)

    def train(mask: Any) -> Any:
        return lab.train(saved._replace(mask=mask), lab.epochs)[0].params

    def run() -> dict[float, tuple[Any, float]]:
        lab.compile()
        links = chain(train, saved.mask, tuple(asked), options.imp_fraction)
        return {link: (mask, seconds) for link, mask, seconds in links}

    mask, seconds = lab.once("imp", run)[sparsity]
    seconds = saved.pruning_seconds + seconds / lab.seeds
    return saved._replace(mask=mask, pruning_seconds=seconds)


def chain(
    train: Callable[[Any], Any], mask: Any, targets: tuple[float, ...], fraction: float
) -> Iterator[tuple[float, Any, float]]:
    """Yields each target with the masks of all seeds and the seconds so far.

    In each round ``train(mask)`` trains from the saved weights to the end and returns
    the parameters, of which ``fraction`` of the remaining ones, the smallest, go.
    """
    began = time.perf_counter()
    if 0.0 in targets:
        yield 0.0, mask, 0.0
    for sparsity in chain_sparsities(targets, fraction):
        each = zip(*map(unstacked, (train(mask), mask)), strict=True)
        mask = stacked(
            [jp.global_mask(jp.magnitude(p), sparsity, prior=m) for p, m in each]
        )
        jax.block_until_ready(mask)
        if sparsity in targets:
            yield sparsity, mask, time.perf_counter() - began


def chain_sparsities(targets: tuple[float, ...], fraction: float) -> list[float]:
    """The sparsity after each round.

    A round removes ``fraction`` of the remaining weights, or fewer to meet a target.
    """
    sparsity, found = 0.0, []
    for target in sorted(targets):
        while sparsity < target:
            sparsity = 1 - (1 - sparsity) * (1 - fraction)
            if sparsity > target or math.isclose(sparsity, target):
                sparsity = target
            found.append(sparsity)
    return found


def k_starts_independent(lab: Lab, sparsity: float) -> Start:
    """K-starts with a network for each of k masks; the fittest continues.

    The networks of a seed share its initial weights and the order of its images, and
    all networks of all seeds train together. The fittest has the best validation
    accuracy after the epochs in which K-starts gathers evidence. This fitness is ours:
    the paper's requires one network that all masks share.
    """
    k, seeds = lab.options.k_independent, lab.seeds
    epochs = max(1, round(lab.options.select_at * lab.epochs))
    drawn = jax.vmap(lambda key: jax.random.split(key, k))(lab.keys.masks).reshape(-1)
    repeat = functools.partial(jax.tree.map, lambda x: jnp.repeat(x, k, axis=0))
    whole = lab.dense(0)
    params, stats = repeat((whole.params, whole.stats))
    start = Start(params, stats, _draw(drawn, params, sparsity))
    keys = jax.tree.map(repeat, lab.keys)
    lab.train(start, 1, keys=keys)  # Compiles.
    began = time.perf_counter()
    state, history = lab.train(start, epochs, keys=keys)
    seconds = (time.perf_counter() - began) / seeds
    fitness = np.asarray(history[-1].validation).reshape(seeds, k)
    best = fitness.argmax(1) + k * np.arange(seeds)
    fittest = functools.partial(jax.tree.map, lambda x: x[best])
    return Start(
        *fittest((state.params, state.stats, start.mask)),
        opt_state=fittest(state.opt_state),
        first=epochs,
        history=fittest(tuple(history)),
        pruning_seconds=seconds,
        fitness=fitness.tolist(),
    )


@functools.partial(jax.jit, static_argnames="sparsity")
def _draw(keys: jax.Array, params: Any, sparsity: float) -> Any:
    """Draws a random mask for every key, one at a time: vmap may draw differently."""

    def one(given: tuple[jax.Array, Any]) -> Any:
        key, params = given
        return jp.layerwise_mask(jp.random(key)(params), sparsity)

    return jax.lax.map(one, (keys, params))
