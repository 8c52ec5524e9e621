"""Every method at every sparsity, over the same seeds: weights, batches and data order.

What differs between two rows of the results is the pruning alone.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments import starts, store
from experiments.config import Config
from experiments.data import Dataset
from experiments.lab import Lab, prepare
from experiments.pruners import VARIANTS
from experiments.results import Result
from experiments.starts import Start
from experiments.train import Metrics


class Run(NamedTuple):
    """A row of the results.

    Attributes:
      method: its name.
      sparsity: the fraction removed.
      variant: one of `experiments.config.Check` or of `pruners.VARIANTS`; "" for none.
    """

    method: str
    sparsity: float
    variant: str = ""

    @property
    def file(self) -> str:
        """The name of the file that it is stored in."""
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.method}-{self.sparsity:g}{variant}.json"


def plan(config: Config) -> list[Run]:
    """The rows to run: dense first, checks and ablations last."""
    pruning = config.pruning
    at = pruning.check_sparsity
    return [
        Run("dense", 0.0),
        *[Run(m, s) for m in pruning.methods for s in pruning.sparsities_of(m)],
        *[
            Run(m, at, check)
            for m in pruning.checked
            for check in pruning.checks
            if (m, check) != ("imp", "inverted")  # Its scores are its training.
        ],
        *[Run(m, at, v) for m in pruning.ablated for v in VARIANTS[m]],
    ]


def compare(
    config: Config,
    dataset: Dataset,
    folder: pathlib.Path,
    on_epoch: Callable[[Run, int], None],
) -> tuple[Result, ...]:
    """Runs what is not yet in the folder; returns all results, as written there.

    Args:
      config: the experiment.
      dataset: its images.
      folder: where the results are and go, a JSON file each.
      on_epoch: ``on_epoch(run, epochs)``, called after every epoch, and once for all
        epochs of a run that was there.
    """
    store.claim(folder, config)
    lab: Lab | None = None
    for run in plan(config):
        if (folder / run.file).exists():
            on_epoch(run, config.epochs)
            continue
        lab = lab or prepare(config, dataset)
        found = _run(lab, run, lambda run=run: on_epoch(run, 1))
        store.save(folder / run.file, dataclasses.asdict(found))
    return tuple(Result(**store.load(folder / run.file)) for run in plan(config))


def _run(lab: Lab, run: Run, on_epoch: Callable[[], None]) -> Result:
    """Finds the masks of one row and trains with them."""
    config, recipe = lab.config, lab.pruner(run.method, run.variant).recipe
    started = time.perf_counter()
    start = _start(lab, run)
    for _ in start.history:
        on_epoch()

    began = time.perf_counter()
    state, trained = lab.train(
        recipe,
        start.mask,
        range(start.first, config.epochs),
        params=start.params,
        stats=start.stats,
        opt_state=start.opt_state,
        sparsity=run.sparsity,
        on_epoch=on_epoch,
    )
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    mask = lab.trainer.mask(recipe, state, lab.keys.masks, run.sparsity)
    return Result(
        method=run.method,
        sparsity=run.sparsity,
        variant=run.variant,
        score_seconds=start.score_seconds,
        pruning_seconds=start.pruning_seconds,
        train_seconds=seconds,
        seconds=time.perf_counter() - started,
        density=_density(mask),
        fitness=start.fitness or _fitness(state.opt_state),
        **_summarise(jax.tree.map(lambda *x: np.stack(x), *start.history, *trained)),
    )


def _start(lab: Lab, run: Run) -> Start:
    """What a row is trained from."""
    pruner = lab.pruner(run.method, run.variant)
    if pruner.finish is not None:
        return starts.finished(lab, pruner.finish, run.sparsity)
    if run.method == "imp":
        targets = {row.sparsity for row in plan(lab.config) if row.method == "imp"}
        start = starts.rewound(lab, run.sparsity, targets)
    elif run.method == "k_starts_independent":
        start = starts.fittest(lab, run.sparsity)
    elif pruner.draw is not None:
        start = starts.drawn(lab, pruner.draw, run.sparsity)
    elif pruner.trigger is not None:
        start = starts.settled(lab, pruner.trigger(run.sparsity))
    else:
        start = starts.warmed_up(lab, pruner.warmup)
    if pruner.find is not None:
        find = functools.partial(pruner.find, inverted=run.variant == "inverted")
        start = starts.scored(lab, start, find, run.sparsity)
    if run.variant == "shuffled":
        mask = jax.vmap(jp.shuffle_mask)(lab.keys.masks, start.mask)
        start = start._replace(mask=mask)
    if run.variant == "redrawn":  # A whole training of its own.
        params, stats = lab.init(lab.keys.masks)
        start = starts.Start(
            start.mask,
            params,
            stats,
            score_seconds=start.score_seconds,
            pruning_seconds=start.pruning_seconds,
        )
    return start


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


def _fitness(opt_state: Any) -> list[list[float]] | None:
    """How fit each of K-starts' masks was, for every seed."""
    found = optax.tree.get(opt_state, "fitness")
    return None if found is None else np.asarray(found).tolist()


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
