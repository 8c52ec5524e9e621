"""The pipeline: an epoch, score, prune, in rounds; then training to the end.

Every run is a file of its own, written whole when it ends; one that is there already is
not run again, so an experiment that was stopped goes on where it stood.
"""

import io
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import results, store
from experiments.config import Rounds
from experiments.data import Dataset, balanced
from experiments.models import Network, network
from experiments.rounds import _diagnostics
from experiments.rounds._measures import CRITERIA
from experiments.rounds._prune import (
    DENSE,
    Lab,
    Row,
    compare_measures,
    describe_prune,
    gather_evidence,
    prune,
)
from experiments.rounds._small import find_groups, measure_latency, measure_size
from experiments.rounds._train import Trainer, trainer


def plan(config: Rounds) -> list[Row]:
    """All rows: the dense network first, filters before weights, which follow them."""
    return [DENSE] + [
        Row(measure, level, fraction, rounds)
        for fraction in config.fractions
        for rounds in config.rounds
        for measure in config.measures
        for level in sorted(config.levels)
        if level == "filters" or CRITERIA[measure].has_weights
    ]


def run(
    config: Rounds,
    dataset: Dataset,
    folder: pathlib.Path,
    on_epoch: Callable[[Row, int, int], None],
) -> list[dict[str, Any]]:
    """Runs what is not yet in the folder; returns all runs, as written there.

    Args:
      config: the experiment.
      dataset: its images.
      folder: where the runs are and go, one JSON file each.
      on_epoch: ``on_epoch(row, seed, epochs)``, called after every epoch, and once for
        all epochs of a run that was there.

    Raises:
      ValueError: if the folder holds runs of another config.
    """
    store.claim(folder, config, seeds=1)  # A run a seed: their number may change.
    net = network(config.model, dataset.image_shape, dataset.classes)
    train = trainer(config, net, dataset)
    root = jax.random.key(config.seed, impl="rbg")  # Compiles faster than threefry.
    for seed in range(config.seeds):
        key, lab = jax.random.fold_in(root, seed), None
        for row in plan(config):
            if (folder / row.file(seed)).exists():
                on_epoch(row, seed, config.epochs)
                continue
            lab = lab or _prepare(config, dataset, net, train, key)
            started = time.perf_counter()
            found = _run_row(lab, row, folder, seed, on_epoch)
            seconds = time.perf_counter() - started
            run = {**row._asdict(), "seed": seed, "seconds": seconds, **found}
            store.save(folder / row.file(seed), run)
    return [
        store.load(folder / row.file(seed))
        for row in plan(config)
        for seed in range(config.seeds)
    ]


def _prepare(
    config: Rounds, dataset: Dataset, net: Network, train: Trainer, key: jax.Array
) -> Lab:
    init_key, batch_key, epochs_key, scores_key = jax.random.split(key, 4)
    params, stats = jax.jit(net.init)(init_key)
    epoch_keys = jax.random.split(epochs_key, config.epochs)
    state, loss = train.epoch(train.begin(params, stats), epoch_keys[0], 0)
    return Lab(
        config,
        dataset,
        net,
        train,
        find_groups(net, params, stats, dataset),
        balanced(dataset.train, config.examples_per_class, batch_key),
        params,
        state,
        loss,
        epoch_keys,
        jax.random.split(scores_key, config.epochs),
    )


def _run_row(
    lab: Lab,
    row: Row,
    folder: pathlib.Path,
    seed: int,
    on_epoch: Callable[[Row, int, int], None],
) -> dict[str, Any]:
    """Runs one row for one seed."""
    config, train = lab.config, lab.train
    mask = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), lab.origin)
    state, loss = jax.tree.map(jnp.copy, lab.state), lab.loss
    dense, counts = _dense_logits(folder, row, seed), _filter_counts(folder, row, seed)
    epochs, prunes, logits, masks = [], [], [], {}
    for number in range(config.epochs):
        if number > 0:
            state, loss = train.epoch(state, lab.epoch_keys[number], number)
        on_epoch(row, seed, 1)
        looked = train.look(state, lab.dataset.validation)
        logits.append(looked.logits)
        epoch: dict[str, Any] = {
            "train_loss": loss,
            "validation_accuracy": looked.accuracy,
            "test_accuracy": train.look(state, lab.dataset.test).accuracy,
            "distance_to_dense": _diagnostics.logit_distance(
                looked.logits, dense[number] if dense else looked.logits
            ),
        }
        if row == DENSE or number < row.rounds:
            evidence = gather_evidence(lab, state, lab.score_keys[number])
            epoch["flow"] = _diagnostics.rates(evidence.flow)
        else:
            flow = train.flow(state, lab.scored, config.temperature)
            epoch["flow"] = _diagnostics.rates(flow)
        if row == DENSE:
            epoch["measures"], masks = compare_measures(lab, evidence, masks)
        epochs.append(epoch)
        if number < row.rounds:
            count = counts[number] if counts else None
            new = prune(lab, row, number + 1, evidence, mask, count)
            pruned = train.restart(state, new)
            prunes.append(describe_prune(lab, state, pruned, evidence, mask, new))
            state, mask = pruned, new
    if row == DENSE:
        buffer = io.BytesIO()
        np.savez(buffer, *logits)
        results.write(folder / _LOGITS.format(seed), buffer.getvalue())
    place = lab.network, state, mask, lab.groups, lab.dataset
    timed = seed == 0 and row.level == "filters"
    return {
        **_summarise(epochs, row.rounds),
        **measure_size(*place, row.level),
        "latency": measure_latency(*place) if timed else None,
        "epochs": epochs,
        "prunes": prunes,
    }


def _summarise(epochs: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """The last epoch, and that best on validation once all pruning is done."""
    best = max(
        range(rounds, len(epochs)), key=lambda n: epochs[n]["validation_accuracy"]
    )
    return {
        "test_accuracy": epochs[-1]["test_accuracy"],
        "validation_accuracy": epochs[-1]["validation_accuracy"],
        "best_epoch": best + 1,
        "test_accuracy_at_best": epochs[best]["test_accuracy"],
    }


def _dense_logits(folder: pathlib.Path, row: Row, seed: int) -> list[np.ndarray]:
    """The dense network's logits after every epoch; none for the dense row itself."""
    if row == DENSE:
        return []
    with np.load(folder / _LOGITS.format(seed)) as stored:
        return [stored[name] for name in stored.files]


def _filter_counts(folder: pathlib.Path, row: Row, seed: int) -> list[int]:
    """How many parameters the filters' run of a weights' row had after each round."""
    found = store.load(folder / row._replace(level="filters").file(seed))
    if row.level == "filters" or row == DENSE or found is None:
        return []
    return [prune["parameters"] for prune in found["prunes"]]


_LOGITS = "dense-{}.npz"
