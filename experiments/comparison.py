"""Program 1: methods by sparsities, with the same seeds, batches and data order.

Two rows of the results differ in the pruning alone.
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
from experiments.methods import CHECKS, METHODS, Start


class Row(NamedTuple):
    """A row of the results; the variant is a check, an ablation, or ""."""

    method: str
    sparsity: float
    variant: str = ""

    @property
    def file(self) -> str:
        variant = f"-{self.variant}" if self.variant else ""
        return f"{self.method}-{self.sparsity:g}{variant}.json"

    def start(self, lab: Lab) -> Start:
        """Makes the start of its training."""
        if self.method == "dense":
            return lab.dense(0)
        row = METHODS[self.method]
        if self.variant in CHECKS:
            return CHECKS[self.variant](lab, row.start, self.sparsity)
        start = row.variants[self.variant] if self.variant else row.start
        return start(lab, self.sparsity)


def plan(config: Config) -> list[Row]:
    """All rows: dense first, checks and ablations last."""
    pruning = config.pruning
    at = pruning.check_sparsity
    rows = [Row("dense", 0.0)]
    for method in pruning.methods:
        only = METHODS[method].only_at
        rows += [
            Row(method, s) for s in (pruning.sparsities if only is None else [only])
        ]
    for method in pruning.checked:
        checks = METHODS[method].checks
        rows += [Row(method, at, c) for c in pruning.checks if c in checks]
    for method in pruning.ablated:
        rows += [Row(method, at, variant) for variant in METHODS[method].variants]
    return rows


class Result(NamedTuple):
    """A stored row; lists have one entry a seed, and accuracies are in [0, 1]."""

    method: str
    sparsity: float  # Fraction of the prunable weights that was asked for.
    sparsity_reached: list[float]
    test_accuracy: list[float]  # After the last epoch.
    validation_accuracy: list[float]
    best_epoch: list[int]  # From 1: best on validation, of those at the last sparsity.
    test_accuracy_at_best: list[float]
    score_seconds: float | None  # Median time to choose one network's mask, compiled.
    # All that one network takes before its last training: warm-up, score and mask, and
    # all earlier rounds of iterative pruning. Of trained networks, the pruning alone.
    pruning_seconds: float
    train_seconds: float  # All seeds together, with compilation if there was any.
    seconds: float
    density: dict[str, float]  # Of each prunable layer, averaged over seeds.
    fitness: list[list[float]] | None = None  # Of K-starts' masks, by seed.
    variant: str = ""


def epochs(config: Config) -> int:
    """The epochs of all rows."""
    return config.epochs * len(plan(config))


def run(
    config: Config,
    dataset: Dataset,
    folder: pathlib.Path,
    tell: Callable[[str, int], None],
) -> list[dict[str, Any]]:
    """Runs the rows that are not in the folder; returns all rows as stored there.

    Calls ``tell(words, epochs)`` after every epoch, and once for a row from before.
    """
    records.claim(folder, config)
    lab = functools.cache(lambda: Lab(config, dataset))
    for row in plan(config):
        words = f"{row.method} {row.sparsity:g} {row.variant}"
        if (folder / row.file).exists():
            tell(words, config.epochs)
        else:
            found = run_row(lab(), row, functools.partial(tell, words, 1))
            records.save(folder / row.file, found._asdict())
    return [records.load(folder / row.file) for row in plan(config)]


def run_row(lab: Lab, row: Row, on_epoch: Callable[[], None]) -> Result:
    """Finds the masks of one row and trains with them."""
    started = time.perf_counter()
    start = row.start(lab)
    for _ in start.history:
        on_epoch()
    began = time.perf_counter()
    state, trained = lab.train(start, lab.epochs, row.sparsity, on_epoch=on_epoch)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    mask = lab.mask(start.recipe, state, lab.keys.masks, row.sparsity)
    history = [*start.history, *trained]
    if not trained:  # Pruned after training: the last epoch's metrics are older.
        history[-1] = lab.measure(history[-1], state, mask)
    fitness = optax.tree.get(state.opt_state, "fitness")
    return Result(
        **row._asdict(),
        score_seconds=start.score_seconds,
        pruning_seconds=start.pruning_seconds,
        train_seconds=seconds,
        seconds=time.perf_counter() - started,
        density=_density(mask),
        fitness=start.fitness if fitness is None else np.asarray(fitness).tolist(),
        **summarize(jax.tree.map(lambda *x: np.stack(x), *history)),
    )


def summarize(history: Metrics) -> dict[str, Any]:
    """The last and the best epoch, from metrics of shape ``[epochs, S]``."""
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
    """The fraction kept of every prunable leaf; masks have a leading axis of seeds."""
    first = jax.tree.map(lambda m: m[0].astype(jnp.float32), mask)
    flags = jax.tree.leaves(jp.matrices(first))
    found = {}
    for (path, leaf), flag in zip(jax.tree.leaves_with_path(mask), flags, strict=True):
        if flag:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found[name.removesuffix("/kernel/value")] = float(leaf.mean())
    return found
