"""Every method at every sparsity, over the same seeds: weights, batches and data order.

What differs between two rows of the results is the pruning alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.config import Config
from experiments.data import Dataset, Split, balanced
from experiments.models import network
from experiments.pruners import PRUNERS
from experiments.results import Result
from experiments.train import Metrics, trainer


def plan(config: Config) -> list[tuple[str, float]]:
    """The methods and sparsities to run: dense first."""
    pruning = config.pruning
    pairs = [(m, s) for m in pruning.methods for s in pruning.sparsities]
    return [("dense", 0.0), *pairs]


def compare(
    config: Config,
    dataset: Dataset,
    on_epoch: Callable[[str, float, Metrics], None],
) -> tuple[Result, ...]:
    """Runs the plan; ``on_epoch(method, sparsity, metrics)`` is called as it goes."""
    steps = len(dataset.train.labels) // config.batch_size
    net = network(config.model, dataset.image_shape, dataset.classes)
    root = jax.random.key(config.seed, impl="rbg")  # Compiles faster than threefry.
    keys = jax.random.split(root, (4, config.seeds))
    init_keys, batch_keys, mask_keys, train_keys = keys
    params, stats = jax.jit(lambda keys: jax.lax.map(net.init, keys))(init_keys)
    batches = [_scoring_batch(config, dataset, key) for key in batch_keys]
    train = trainer(config, net, steps)
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    pruners = {
        method: PRUNERS[method](config.pruning, net, steps * config.epochs)
        for method in dict(plan(config))  # Once each: they hold what is compiled.
    }

    results = []
    for method, sparsity in plan(config):
        pruner = pruners[method]
        mask, score_seconds = _find_masks(
            pruner.find, mask_keys, params, stats, batches, sparsity
        )
        started = time.perf_counter()
        state = train.start(pruner.link, params, stats, mask)
        history = []
        for epoch in range(config.epochs):
            epoch_keys = fold_in(train_keys, epoch)
            state, metrics = train.epoch(
                pruner.link, state, epoch_keys, jnp.float32(sparsity), dataset
            )
            history.append(jax.device_get(metrics))
            on_epoch(method, sparsity, history[-1])
        results.append(
            Result(
                method=method,
                sparsity=sparsity,
                score_seconds=score_seconds,
                train_seconds=time.perf_counter() - started,
                density=_density(jp.get_mask(state.opt_state, state.params)),
                **_summarise(jax.tree.map(lambda *x: np.stack(x), *history)),
            )
        )
    return tuple(results)


def _find_masks(
    find: Callable[..., Any] | None,
    keys: jax.Array,
    params: Any,
    stats: Any,
    batches: list[Split],
    sparsity: float,
) -> tuple[Any, float | None]:
    """Finds the masks of all seeds, one network at a time, and times it."""
    if find is None:
        return jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params), None
    masks, seconds = [], []
    for seed, batch in enumerate(batches):
        one_params, one_stats = jax.tree.map(lambda x, i=seed: x[i], (params, stats))
        if seed == 0:  # Compiles.
            jax.block_until_ready(find(keys[0], one_params, one_stats, batch, sparsity))
        started = time.perf_counter()
        mask = find(keys[seed], one_params, one_stats, batch, sparsity)
        masks.append(jax.block_until_ready(mask))
        seconds.append(time.perf_counter() - started)
    return jax.tree.map(lambda *m: jnp.stack(m), *masks), statistics.median(seconds)


def _scoring_batch(config: Config, dataset: Dataset, key: jax.Array) -> Split:
    batch = balanced(dataset.train, config.pruning.examples_per_class, key)
    return Split(dataset.standardise(batch.images), batch.labels)


def _summarise(history: Metrics) -> dict[str, Any]:
    """Reads last and best epochs off metrics of shape ``[epochs, S]``."""
    final = history.sparsity == history.sparsity[-1]
    best = np.where(final, history.validation, -1.0).argmax(0)
    return {
        "sparsity_reached": history.sparsity[-1].tolist(),
        "test_accuracy": history.test[-1].tolist(),
        "validation_accuracy": history.validation[-1].tolist(),
        "best_epoch": (best + 1).tolist(),
        "test_accuracy_at_best": history.test[best, np.arange(len(best))].tolist(),
    }


def _density(mask: Any) -> dict[str, float]:
    """The fraction kept of every prunable leaf of masks stacked over seeds."""
    first = jax.tree.map(lambda m: m[0].astype(jnp.float32), mask)
    flags = jax.tree.leaves(jp.matrices(first))
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix(
            "/kernel/value"
        ): float(leaf.mean())
        for (path, leaf), flag in zip(leaves, flags, strict=True)
        if flag
    }
