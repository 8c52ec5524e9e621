"""Program 1: methods by sparsities, over the same seeds, batches and data order.

What differs between two rows of the results is the pruning alone.
"""

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
from experiments import records
from experiments.config import Config
from experiments.data import Dataset
from experiments.lab import Lab, Metrics
from experiments.methods import CHECKS, METHODS, StartFn


class Run(NamedTuple):
    """A row of the results; the variant is a check or an ablation, "" for neither."""

    method: str
    sparsity: float
    variant: str = ""

    @property
    def file(self) -> str:
        """The name of the file that it is stored in."""
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.method}-{self.sparsity:g}{variant}.json"

    @property
    def start(self) -> StartFn:
        """The function that makes its start."""
        if self.method == "dense":
            return lambda lab, sparsity: lab.dense(0)
        row = METHODS[self.method]
        if self.variant in CHECKS:
            check = CHECKS[self.variant]
            return lambda lab, sparsity: check(lab, row.start, sparsity)
        return row.variants[self.variant] if self.variant else row.start


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
            if check in METHODS[m].checks
        ],
        *[Run(m, at, v) for m in pruning.ablated for v in METHODS[m].variants],
    ]


class Result(NamedTuple):
    """One row, as it is stored; lists have one entry a seed, accuracies in [0, 1].

    Attributes:
      method: its name.
      sparsity: fraction of prunable weights that was to be removed.
      sparsity_reached: the fraction that was removed.
      test_accuracy: after the last epoch.
      validation_accuracy: after the last epoch.
      best_epoch: the epoch best on validation, from 1, of those at the final sparsity.
      test_accuracy_at_best: after that epoch.
      score_seconds: median time to choose one network's mask, after compilation; None
        if nothing is chosen before training.
      pruning_seconds: everything that one network takes before its last training:
        warm-up, score and mask, all earlier rounds of iterative pruning. Of methods
        that prune trained networks, the pruning alone.
      train_seconds: of all seeds together, with compilation if there was any.
      seconds: all of it, for all seeds.
      density: fraction kept of each prunable layer, averaged over seeds.
      fitness: how fit each of K-starts' masks was, for every seed.
      variant: a sanity check or an ablation of the method; "" for neither.
    """

    method: str
    sparsity: float
    sparsity_reached: list[float]
    test_accuracy: list[float]
    validation_accuracy: list[float]
    best_epoch: list[int]
    test_accuracy_at_best: list[float]
    score_seconds: float | None
    pruning_seconds: float
    train_seconds: float
    seconds: float
    density: dict[str, float]
    fitness: list[list[float]] | None = None
    variant: str = ""


def compare(
    config: Config,
    dataset: Dataset,
    folder: pathlib.Path,
    on_epoch: Callable[[Run, int], None],
) -> list[dict[str, Any]]:
    """Runs the rows that are not yet in the folder; returns all, as stored there.

    Args:
      config: the experiment.
      dataset: its images.
      folder: where the rows are and go, a JSON file each.
      on_epoch: ``on_epoch(run, epochs)``, called after every epoch, and once for all
        epochs of a row that was there.
    """
    records.claim(folder, config)
    lab: Lab | None = None
    for run in plan(config):
        if (folder / run.file).exists():
            on_epoch(run, config.epochs)
            continue
        lab = lab or Lab(config, dataset)
        found = run_row(lab, run, functools.partial(on_epoch, run, 1))
        records.save(folder / run.file, found._asdict())
    return [records.load(folder / run.file) for run in plan(config)]


def run_row(lab: Lab, run: Run, on_epoch: Callable[[], None]) -> Result:
    """Finds the masks of one row and trains with them."""
    started = time.perf_counter()
    start = run.start(lab, run.sparsity)
    for _ in start.history:
        on_epoch()
    began = time.perf_counter()
    state, trained = lab.train(start, lab.epochs, run.sparsity, on_epoch=on_epoch)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    mask = lab.mask(start.recipe, state, lab.keys.masks, run.sparsity)
    history = [*start.history, *trained]
    if not trained:  # Pruned after training: the last epoch's metrics are older.
        history[-1] = lab.measure(history[-1], state, mask)
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
        **summarize(jax.tree.map(lambda *x: np.stack(x), *history)),
    )


def summarize(history: Metrics) -> dict[str, Any]:
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
