"""Where a row's last training starts: the masks, and all that came before them."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import imp
from experiments.data import Split
from experiments.imp import Link
from experiments.lab import Keys, Lab
from experiments.pruners import Settling
from experiments.train import Metrics


class Start(NamedTuple):
    """What is trained from here on; trees have a leading axis of seeds.

    Attributes:
      mask: the masks.
      params: the parameters.
      stats: the running statistics.
      opt_state: the optimizer's; None is that of a new one.
      history: the metrics of the epochs that these have behind them.
      first: how many epochs these are.
      score_seconds: median time to score one network and select its mask, compiled;
        None where nothing is scored.
      pruning_seconds: everything that one network took so far.
      fitness: validation accuracy of the networks that K-starts trained, for each seed.
    """

    mask: Any
    params: Any
    stats: Any
    opt_state: Any = None
    history: tuple[Metrics, ...] = ()
    first: int = 0
    score_seconds: float | None = None
    pruning_seconds: float = 0.0
    fitness: list[list[float]] | None = None


def dense(lab: Lab) -> Start:
    """Initialisation, whole."""
    return Start(lab.whole, lab.params, lab.stats)


def drawn(lab: Lab, draw: Callable[..., Any], sparsity: float) -> Start:
    """Other weights, with their masks, one network at a time."""
    found = [
        draw(key, jax.tree.map(lambda x, i=i: x[i], lab.params), sparsity)
        for i, key in enumerate(lab.keys.masks)
    ]
    params, mask = jax.tree.map(lambda *x: jnp.stack(x), *found)
    return Start(mask, params, lab.stats)


def warmed_up(lab: Lab, epochs: int) -> Start:
    """Some dense epochs later, with the optimizer as it is by then."""
    if not epochs:
        return dense(lab)
    lab.train(lab.dense.recipe, lab.whole, range(1))  # Compiles.
    began = time.perf_counter()
    state, history = lab.train(lab.dense.recipe, lab.whole, range(epochs))
    seconds = (time.perf_counter() - began) / lab.config.seeds
    return Start(
        mask=lab.whole,
        params=state.params,
        stats=state.stats,
        opt_state=state.opt_state,
        history=tuple(history),
        first=epochs,
        pruning_seconds=seconds,
    )


def settled(lab: Lab, settling: Settling) -> Start:
    """As many dense epochs later as it takes for most seeds' triggers to have fired.

    All seeds prune at the same epoch, and at the latest with half of training to go.
    """
    trigger, view, begin = settling
    look = jax.jit(jax.vmap(lambda p, state: trigger.update(view(p), state)))
    start, fired = warmed_up(lab, begin), np.zeros(lab.config.seeds, bool)
    states = jax.vmap(trigger.init)(start.params)
    lab.train(lab.dense.recipe, lab.whole, range(1))  # Compiles, as does the next line.
    look(start.params, states)
    began = time.perf_counter()
    while start.first < lab.config.epochs // 2 and 2 * fired.sum() <= len(fired):
        state, history = lab.train(
            lab.dense.recipe,
            lab.whole,
            range(start.first, start.first + 1),
            params=start.params,
            stats=start.stats,
            opt_state=start.opt_state,
        )
        due, states = look(state.params, states)
        fired |= np.asarray(due)
        start = start._replace(
            params=state.params,
            stats=state.stats,
            opt_state=state.opt_state,
            history=(*start.history, *history),
            first=start.first + 1,
        )
    seconds = (time.perf_counter() - began) / lab.config.seeds
    return start._replace(pruning_seconds=start.pruning_seconds + seconds)


def scored(lab: Lab, start: Start, find: Callable[..., Any], sparsity: float) -> Start:
    """Finds the masks of all seeds, one network at a time, and times it."""

    def found(seed: int, params: Any, stats: Any, batch: Split) -> Any:
        return find(lab.keys.masks[seed], params, stats, batch, sparsity)

    mask, median = _one_by_one(lab, found, start.params, start.stats)
    return start._replace(
        mask=mask,
        opt_state=None,
        score_seconds=median,
        pruning_seconds=start.pruning_seconds + median,
    )


def finished(lab: Lab, finish: Callable[..., Any], sparsity: float) -> Start:
    """The trained networks, pruned; their last epoch's accuracies are those after."""
    state, history = lab.trained()

    def found(seed: int, params: Any, stats: Any, batch: Split) -> Any:
        del seed
        return finish(params, stats, batch, sparsity)

    (params, mask), median = _one_by_one(lab, found, state.params, state.stats)
    validation, test = lab.trainer.accuracies(params, state.stats, lab.dataset)
    last = history[-1]._replace(
        validation=validation, test=test, sparsity=jax.vmap(jp.sparsity)(mask, params)
    )
    return Start(
        mask=mask,
        params=params,
        stats=state.stats,
        history=(*history[:-1], jax.device_get(last)),
        first=lab.config.epochs,
        score_seconds=median,
        pruning_seconds=median,
    )


def _one_by_one(
    lab: Lab, found: Callable[..., Any], params: Any, stats: Any
) -> tuple[Any, float]:
    """Stacks ``found(seed, params, stats, batch)``; also the median of its seconds."""
    every, seconds = [], []
    for seed, batch in enumerate(lab.batches):
        one = jax.tree.map(lambda x, i=seed: x[i], (params, stats))
        if seed == 0:  # Compiles.
            jax.block_until_ready(found(seed, *one, batch))
        began = time.perf_counter()
        every.append(jax.block_until_ready(found(seed, *one, batch)))
        seconds.append(time.perf_counter() - began)
    return jax.tree.map(lambda *x: jnp.stack(x), *every), statistics.median(seconds)


def rewound(lab: Lab, sparsity: float, targets: set[float]) -> Start:
    """The ticket of iterative pruning; its chain is run when it is first asked for."""
    saved = warmed_up(lab, lab.config.pruning.rewind)
    if not lab.config.pruning.keep_optimizer:
        saved = saved._replace(opt_state=None)
    if not lab.tickets:
        lab.train(lab.dense.recipe, lab.whole, range(1))  # Compiles.

        def train(mask: Any) -> Any:
            state, _ = lab.train(
                lab.dense.recipe,
                mask,
                range(saved.first, lab.config.epochs),
                params=saved.params,
                stats=saved.stats,
                opt_state=saved.opt_state,
            )
            return state.params

        fraction = lab.config.pruning.imp_fraction
        links = imp.chain(train, lab.whole, tuple(targets), fraction)
        lab.tickets.update({link.sparsity: link for link in links})
    ticket: Link = lab.tickets[sparsity]
    seconds = ticket.seconds / lab.config.seeds
    return saved._replace(
        mask=ticket.mask, pruning_seconds=saved.pruning_seconds + seconds
    )


def fittest(lab: Lab, sparsity: float) -> Start:
    """K-starts' independent mode: k masked networks a seed, of which one goes on.

    All networks of all seeds are one program; those of a seed share its weights and the
    order of its images. The fittest is the one best on the validation images after the
    epochs in which K-starts looks for its mask, a fitness of ours: the paper's needs
    one network that all masks share.
    """
    config, k = lab.config, lab.config.pruning.k_independent
    seeds = config.seeds
    epochs = max(1, round(config.pruning.select_at * config.epochs))
    drawn = jax.vmap(lambda key: jax.random.split(key, k))(lab.keys.masks).reshape(-1)
    repeat = functools.partial(jax.tree.map, lambda x: jnp.repeat(x, k, axis=0))
    params, stats = repeat((lab.params, lab.stats))
    masks = _draw(drawn, params, sparsity)
    keys = Keys(*map(repeat, lab.keys))
    train = functools.partial(
        lab.train, lab.dense.recipe, masks, params=params, stats=stats, keys=keys
    )
    train(epochs=range(1))  # Compiles.
    began = time.perf_counter()
    state, history = train(epochs=range(epochs))
    seconds = (time.perf_counter() - began) / seeds
    fitness = np.asarray(history[-1].validation).reshape(seeds, k)
    best = fitness.argmax(1) + k * np.arange(seeds)
    chosen = functools.partial(jax.tree.map, lambda x: x[best])
    return Start(
        mask=chosen(masks),
        params=chosen(state.params),
        stats=chosen(state.stats),
        opt_state=chosen(state.opt_state),
        history=chosen(tuple(history)),
        first=epochs,
        pruning_seconds=seconds,
        fitness=fitness.tolist(),
    )


@functools.partial(jax.jit, static_argnames="sparsity")
def _draw(keys: jax.Array, params: Any, sparsity: float) -> Any:
    """A random mask for every key; one after the other, as each key draws alone."""

    def one(given: tuple[jax.Array, Any]) -> Any:
        key, params = given
        return jp.layerwise_mask(jp.random(key)(params), sparsity)

    return jax.lax.map(one, (keys, params))
