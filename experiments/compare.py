"""Every method at every sparsity, over the same seeds: weights, batches and data order.

What differs between two rows of the results is the pruning alone.
"""

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments import imp, store
from experiments.config import Config
from experiments.data import Dataset, Split, balanced
from experiments.imp import Link
from experiments.models import Network, network
from experiments.pruners import DRIVE_VARIANTS, PRUNERS, Pruner, drive
from experiments.results import Result
from experiments.train import Metrics, State, Trainer, trainer


class Run(NamedTuple):
    """A row of the results.

    Attributes:
      method: its name.
      sparsity: the fraction removed.
      variant: one of `experiments.config.Check`, or of DRIVE's variants; "" for none.
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
        *[Run(m, s) for m in pruning.methods for s in pruning.sparsities],
        *[
            Run(m, at, check)
            for m in pruning.checked
            for check in pruning.checks
            if (m, check) != ("imp", "inverted")  # Its scores are its training.
        ],
        *[Run("drive", at, v) for v in DRIVE_VARIANTS if pruning.ablate_drive],
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
    lab: _Lab | None = None
    for run in plan(config):
        if (folder / run.file).exists():
            on_epoch(run, config.epochs)
            continue
        lab = lab or _prepare(config, dataset)
        found = _run(lab, run, lambda run=run: on_epoch(run, 1))
        store.save(folder / run.file, dataclasses.asdict(found))
    return tuple(Result(**store.load(folder / run.file)) for run in plan(config))


@dataclasses.dataclass
class _Lab:
    """What all runs share; trees have a leading axis of seeds."""

    config: Config
    dataset: Dataset
    network: Network
    steps: int
    keys: tuple[jax.Array, ...]
    params: Any
    stats: Any
    batches: list[Split]
    train: Trainer
    pruners: dict[str, Pruner]
    tickets: dict[float, Link]

    def pruner(self, run: Run) -> Pruner:
        """The run's pruner: one object a method, as it holds what is compiled."""
        name = f"{run.method} {run.variant if run.variant in DRIVE_VARIANTS else ''}"
        if name not in self.pruners:
            factory = PRUNERS["dense" if run.method == "imp" else run.method]
            if run.variant in DRIVE_VARIANTS:
                factory = drive(**DRIVE_VARIANTS[run.variant])
            steps = self.steps * self.config.epochs
            self.pruners[name] = factory(self.config.pruning, self.network, steps)
        return self.pruners[name]


def _prepare(config: Config, dataset: Dataset) -> _Lab:
    net = network(config.model, dataset.image_shape, dataset.classes)
    steps = len(dataset.train.labels) // config.batch_size
    root = jax.random.key(config.seed, impl="rbg")  # Compiles faster than threefry.
    keys = tuple(jax.random.split(root, (4, config.seeds)))
    params, stats = _init(net, keys[0])
    batches = [_scoring_batch(config, dataset, key) for key in keys[1]]
    train = trainer(config, net, steps)
    return _Lab(
        config, dataset, net, steps, keys, params, stats, batches, train, {}, {}
    )


def _init(net: Network, keys: jax.Array) -> tuple[Any, Any]:
    return jax.jit(lambda keys: jax.lax.map(net.init, keys))(keys)


def _run(lab: _Lab, run: Run, on_epoch: Callable[[], None]) -> Result:
    """Finds the masks of one row and trains with them."""
    config, pruner = lab.config, lab.pruner(run)
    _, _, mask_keys, _ = lab.keys
    params, stats, first = lab.params, lab.stats, 0
    whole = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params)
    started = time.perf_counter()
    spent, history = 0.0, []
    if pruner.warmup:
        _train(lab, lab.pruner(Run("dense", 0.0)), whole, 0, 1)  # Compiles.
        began = time.perf_counter()
        state, history = _train(
            lab, lab.pruner(Run("dense", 0.0)), whole, 0, pruner.warmup
        )
        spent = (time.perf_counter() - began) / config.seeds
        params, stats, first = state.params, state.stats, pruner.warmup
    if run.method == "imp":
        ticket = _ticket(lab, run.sparsity, whole)
        mask, score_seconds, spent = ticket.mask, None, ticket.seconds / config.seeds
        params, stats, first = _saved(lab, whole)
    elif pruner.find is None:
        mask, score_seconds = whole, None
    else:
        find = functools.partial(pruner.find, inverted=run.variant == "inverted")
        mask, score_seconds = _find_masks(
            find, mask_keys, params, stats, lab.batches, run.sparsity
        )
        spent += score_seconds
    if run.variant == "shuffled":
        mask = jax.vmap(jp.shuffle_mask)(mask_keys, mask)
    if run.variant == "redrawn":  # A whole training of its own.
        (params, stats), first, history = _init(lab.network, mask_keys), 0, []
    for _ in history:
        on_epoch()

    began = time.perf_counter()
    state, trained = _train(
        lab, pruner, mask, first, config.epochs, on_epoch, params, stats, run.sparsity
    )
    jax.block_until_ready(state)
    return Result(
        method=run.method,
        sparsity=run.sparsity,
        variant=run.variant,
        score_seconds=score_seconds,
        pruning_seconds=spent,
        train_seconds=time.perf_counter() - began,
        seconds=time.perf_counter() - started,
        density=_density(jp.get_mask(state.opt_state, state.params)),
        fitness=_fitness(state.opt_state),
        **_summarise(jax.tree.map(lambda *x: np.stack(x), *history, *trained)),
    )


def _train(
    lab: _Lab,
    pruner: Pruner,
    mask: Any,
    first: int,
    last: int,
    on_epoch: Callable[[], None] = lambda: None,
    params: Any = None,
    stats: Any = None,
    sparsity: float = 0.0,
) -> tuple[State, list[Metrics]]:
    """Trains from one epoch to another, from initialisation if not told otherwise."""
    _, _, mask_keys, train_keys = lab.keys
    params = lab.params if params is None else params
    stats = lab.stats if stats is None else stats
    step = jnp.int32(first * lab.steps)
    state = lab.train.start(pruner.wrap, params, stats, mask, mask_keys, step)
    history = []
    for epoch in range(first, last):
        epoch_keys = _fold_in(train_keys, epoch)
        state, metrics = lab.train.epoch(
            pruner.wrap, state, epoch_keys, jnp.float32(sparsity), lab.dataset
        )
        history.append(jax.device_get(metrics))
        on_epoch()
    return state, history


_fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))


def _saved(lab: _Lab, whole: Any) -> tuple[Any, Any, int]:
    """What iterative pruning rewinds to: parameters, statistics and the epoch."""
    rewind = lab.config.pruning.rewind
    if rewind == 0:
        return lab.params, lab.stats, 0
    state, _ = _train(lab, lab.pruner(Run("dense", 0.0)), whole, 0, rewind)
    return state.params, state.stats, rewind


def _ticket(lab: _Lab, sparsity: float, whole: Any) -> Link:
    """The link of the one chain of iterative pruning, which is run when first asked."""
    if not lab.tickets:
        config, dense = lab.config, lab.pruner(Run("dense", 0.0))
        _train(lab, dense, whole, 0, 1)  # Compiles.
        params, stats, first = _saved(lab, whole)

        def train(mask: Any) -> Any:
            state, _ = _train(
                lab, dense, mask, first, config.epochs, params=params, stats=stats
            )
            return state.params

        targets = {run.sparsity for run in plan(config) if run.method == "imp"}
        fraction = config.pruning.imp_fraction
        links = imp.chain(train, whole, tuple(targets), fraction)
        lab.tickets.update({link.sparsity: link for link in links})
    return lab.tickets[sparsity]


def _find_masks(
    find: Callable[..., Any],
    keys: jax.Array,
    params: Any,
    stats: Any,
    batches: list[Split],
    sparsity: float,
) -> tuple[Any, float]:
    """Finds the masks of all seeds, one network at a time, and times it."""
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
