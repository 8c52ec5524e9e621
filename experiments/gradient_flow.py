"""Program 2: pruning in rounds while training, the pipeline of Lubana & Dick (2021).

Train an epoch, score, prune, in rounds; then train to the end. Every run is a file,
written whole when the run ends. A run whose file exists does not run again, so an
experiment that was stopped resumes.
"""

import functools
import io
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import diagnostics, records
from experiments.config import Rounds
from experiments.data import Dataset, Split, balanced
from experiments.measures import MEASURES, Evidence
from experiments.models import Network
from experiments.tracking import Tracked, Trainer
from experiments.training import State, evaluate


class Row(NamedTuple):
    """A row of the results."""

    measure: str
    level: str  # "filters" or "weights".
    fraction: float  # Of all filters, removed after the last round.
    rounds: int

    def file(self, seed: int) -> str:
        return (
            f"{self.measure}-{self.level}-{self.fraction:g}-{self.rounds}-{seed}.json"
        )


DENSE = Row("dense", "weights", 0.0, 0)


def plan(config: Rounds) -> list[Row]:
    """All rows: the dense network first, and filters before weights."""
    return [DENSE] + [
        Row(measure, level, fraction, rounds)
        for fraction in config.fractions
        for rounds in config.rounds
        for measure in config.measures
        for level in sorted(config.levels)
        if level == "filters" or MEASURES[measure].has_weights
    ]


class Shared(NamedTuple):
    """Shared by all runs of one seed."""

    config: Rounds
    dataset: Dataset
    trainer: Trainer
    groups: Any  # Of channels.
    scored: Split
    origin: Any  # The initial parameters.
    state: Tracked  # After the first epoch, and its loss.
    loss: float
    epoch_keys: jax.Array
    score_keys: jax.Array

    @property
    def whole(self) -> Any:
        """The mask that removes nothing."""
        return jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), self.origin)


def epochs(config: Rounds) -> int:
    """The epochs of all runs."""
    return config.epochs * config.seeds * len(plan(config))


def run(
    config: Rounds,
    dataset: Dataset,
    folder: pathlib.Path,
    tell: Callable[[str, int], None],
) -> list[dict[str, Any]]:
    """Runs the rows that are not in the folder; returns all runs as stored there.

    Calls ``tell(words, epochs)`` after every epoch, and once for a run from before.
    """
    records.claim(folder, config, seeds=1)  # A run a seed: their number may change.
    trainer = Trainer(config, dataset)
    root = jax.random.key(config.seed, impl="rbg")  # Compiles faster than threefry.
    prepared = functools.cache(
        lambda seed: prepare(config, dataset, trainer, jax.random.fold_in(root, seed))
    )
    for seed in range(config.seeds):
        for row in plan(config):
            words = f"{row.measure} {row.level} {row.fraction:g}, seed {seed}"
            path = folder / row.file(seed)
            if path.exists():
                tell(words, config.epochs)
            else:
                on_epoch = functools.partial(tell, words, 1)
                records.save(path, run_row(prepared(seed), row, folder, seed, on_epoch))
    return [
        records.load(folder / row.file(seed))
        for row in plan(config)
        for seed in range(config.seeds)
    ]


def prepare(
    config: Rounds, dataset: Dataset, trainer: Trainer, key: jax.Array
) -> Shared:
    """Draws a network and trains it for the first epoch."""
    init_key, batch_key, epochs_key, scores_key = jax.random.split(key, 4)
    params, stats = jax.jit(trainer.network.init)(init_key)
    epoch_keys = jax.random.split(epochs_key, config.epochs)
    state, loss = trainer.epoch(trainer.begin(params, stats), epoch_keys[0], 0)
    apply, images = _timed(trainer.network, stats, dataset)
    return Shared(
        config,
        dataset,
        trainer,
        jp.structured.channel_groups(apply, params, images),
        balanced(dataset.train, config.examples_per_class, batch_key),
        params,
        state,
        loss,
        epoch_keys,
        jax.random.split(scores_key, config.epochs),
    )


def run_row(
    shared: Shared,
    row: Row,
    folder: pathlib.Path,
    seed: int,
    on_epoch: Callable[[], None],
) -> dict[str, Any]:
    """Runs one row for one seed."""
    started = time.perf_counter()
    config, trainer, dataset = shared.config, shared.trainer, shared.dataset
    mask, masks = shared.whole, {}
    state, loss = jax.tree.map(jnp.copy, shared.state), shared.loss
    dense, counts = _dense_logits(folder, row, seed), _filter_counts(folder, row, seed)
    epochs, prunes, logits = [], [], []
    for number in range(config.epochs):
        if number > 0:
            state, loss = trainer.epoch(state, shared.epoch_keys[number], number)
        on_epoch()
        seen = trainer.evaluate(state, dataset.validation)
        logits.append(seen.logits)
        epoch: dict[str, Any] = {
            "train_loss": loss,
            "validation_accuracy": seen.accuracy,
            "test_accuracy": trainer.evaluate(state, dataset.test).accuracy,
            "distance_to_dense": diagnostics.logit_distance(
                seen.logits, dense[number] if dense else seen.logits
            ),
        }
        evidence = None
        if row == DENSE or number < row.rounds:
            evidence = gather_evidence(shared, state, shared.score_keys[number])
            flow = evidence.flow
        else:
            flow = trainer.flow(state, shared.scored, config.temperature)
        epoch["flow"] = diagnostics.rates(flow)
        if row == DENSE:
            epoch["measures"], masks = compare_measures(shared, evidence, masks)
        epochs.append(epoch)
        if number < row.rounds:
            count = counts[number] if counts else None
            new = prune(shared, row, number + 1, evidence, mask, count)
            pruned = trainer.restart(state, new)
            prunes.append(describe_prune(shared, state, pruned, evidence, mask, new))
            state, mask = pruned, new
    if row == DENSE:
        buffer = io.BytesIO()
        np.savez(buffer, *logits)
        records.write(folder / f"dense-{seed}.npz", buffer.getvalue())
    # The last epoch, and the best on validation after all pruning.
    best = max(
        range(row.rounds, len(epochs)), key=lambda n: epochs[n]["validation_accuracy"]
    )
    timed = seed == 0 and row.level == "filters"
    found = {
        "test_accuracy": epochs[-1]["test_accuracy"],
        "validation_accuracy": epochs[-1]["validation_accuracy"],
        "best_epoch": best + 1,
        "test_accuracy_at_best": epochs[best]["test_accuracy"],
        **measure_size(shared, state.state, mask, row.level),
        "latency": measure_latency(shared, state.state, mask) if timed else None,
        "epochs": epochs,
        "prunes": prunes,
    }
    seconds = time.perf_counter() - started
    return {**row._asdict(), "seed": seed, "seconds": seconds, **found}


def _dense_logits(folder: pathlib.Path, row: Row, seed: int) -> list[np.ndarray]:
    """The dense network's logits after every epoch; none for the dense row itself."""
    if row == DENSE:
        return []
    with np.load(folder / f"dense-{seed}.npz") as stored:
        return [stored[name] for name in stored.files]


def _filter_counts(folder: pathlib.Path, row: Row, seed: int) -> list[int]:
    """For a row of weights, the parameters that its row of filters kept each round."""
    found = records.load(folder / row._replace(level="filters").file(seed))
    if row.level == "filters" or row == DENSE or found is None:
        return []
    return [prune["parameters"] for prune in found["prunes"]]


# One pruning.


def gather_evidence(shared: Shared, state: Tracked, key: jax.Array) -> Evidence:
    """The gradient flows that the measures read."""
    config = shared.config
    flow, grasp_flow, unit_flow = (
        shared.trainer.flow(state, shared.scored, temperature)
        for temperature in (config.temperature, config.grasp_temperature, 1.0)
    )
    return Evidence(flow, grasp_flow, unit_flow, shared.origin, state.tracked, key)


def prune(
    shared: Shared, row: Row, done: int, evidence: Any, mask: Any, count: int | None
) -> Any:
    """The mask after ``done`` rounds, within the mask so far.

    With a ``count``, single weights are pruned to that number of parameters.
    """
    measure = MEASURES[row.measure]
    fraction = float(jp.hyperbolic_schedule(row.fraction, row.rounds)(done))
    if row.level == "weights":
        if count is not None:  # Of all parameters; only some are prunable.
            sizes = [leaf.size for leaf in jax.tree.leaves(shared.origin)]
            flags = jax.tree.leaves(jp.matrices(shared.origin))
            prunable = sum(n for n, flag in zip(sizes, flags, strict=True) if flag)
            fraction = (sum(sizes) - count) / prunable
        return jp.global_mask(measure.weights(evidence), fraction, prior=mask)
    left = jp.structured.group_scores(jax.tree.map(jnp.float32, mask), shared.groups)
    scores = measure.filters(evidence, shared.groups)
    return jp.structured.structured_mask(
        [  # Removed filters rank last.
            jnp.where(n > 0, score, -jnp.inf)
            for score, n in zip(scores, left, strict=True)
        ],
        shared.groups,
        shared.origin,
        fraction,
        scope=measure.scope,
        min_keep=shared.config.min_keep,
    )


def describe_prune(
    shared: Shared, before: Tracked, after: Tracked, evidence: Any, old: Any, new: Any
) -> dict[str, Any]:
    """The predicted and the measured changes by a pruning."""
    trainer, scored = shared.trainer, shared.scored
    flow = trainer.flow(after, scored, shared.config.temperature)
    flows = (evidence.flow, flow)
    return {
        "parameters": int(sum(m.sum() for m in jax.tree.leaves(new))),
        "loss": [trainer.evaluate(state, scored).loss for state in (before, after)],
        "squared_gradient": [diagnostics.rates(f)["squared_gradient"] for f in flows],
        "predicted": diagnostics.predicted_changes(evidence.flow, old, new),
        "distance": diagnostics.mask_distance(old, new),
        "contribution_share": diagnostics.contribution_share(
            before.contribution, old, new
        ),
    }


def compare_measures(
    shared: Shared, evidence: Any, before: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How similar the measures are; how much their masks differ from ``before``."""
    fraction, names = max(shared.config.fractions), shared.config.measures
    masks = {
        name: prune(
            shared, Row(name, "filters", fraction, 1), 1, evidence, shared.whole, None
        )
        for name in names
    }
    scores = {
        name: MEASURES[name].weights(evidence)
        for name in names
        if MEASURES[name].has_weights
    }
    distances = {
        name: diagnostics.mask_distance(before[name], masks[name])
        for name in names
        if name in before
    }
    correlations = diagnostics.correlations(scores)
    return {"correlations": correlations, "mask_distance": distances}, masks


# How small, cheap and fast a pruned network is: counted and measured.

_BATCH, _TIMES = 100, 25


def _timed(net: Network, stats: Any, dataset: Dataset) -> tuple[Any, jax.Array]:
    """A network in eval mode and a batch for it."""
    images = dataset.standardize(dataset.test.images[:_BATCH])
    return lambda params, x: evaluate(net, params, stats, x), images


def measure_size(shared: Shared, state: State, mask: Any, level: str) -> dict[str, Any]:
    """Counts the parameters, and the FLOPs of one image.

    Filters are removed from the network. Single weights are not, and their FLOPs are
    those that hardware could skip.
    """
    apply, images = _timed(shared.trainer.network, state.stats, shared.dataset)
    if level == "weights":
        cost = jp.cost(apply, state.params, images, mask=mask)
        return {"parameters": int(cost.nonzero), "flops": cost.sparse_flops / _BATCH}
    small, params = jp.structured.shrink(apply, state.params, mask, shared.groups)
    cost = jp.cost(small, params, images)
    return {"parameters": int(cost.params), "flops": cost.flops / _BATCH}


def measure_latency(shared: Shared, state: State, mask: Any) -> dict[str, float]:
    """Times a batch in the masked and in the shrunk network, and compares outputs.

    Returns seconds, "masked" and "small", and the largest "difference" of an output,
    relative to the largest output.
    """
    apply, images = _timed(shared.trainer.network, state.stats, shared.dataset)
    masked = jax.jit(apply)
    small, params = jp.structured.shrink(apply, state.params, mask, shared.groups)
    reference, outputs = masked(state.params, images), small(params, images)
    error = jnp.max(jnp.abs(outputs - reference)) / jnp.max(jnp.abs(reference))
    seconds = np.zeros((_TIMES + 1, 2))  # The first call is left out.
    for row in seconds:  # Alternately, so that both see the same machine.
        row[0] = _seconds(masked, state.params, images)
        row[1] = _seconds(small, params, images)
    medians = np.median(seconds[1:], axis=0).tolist()
    return dict(zip(("masked", "small"), medians, strict=True), difference=float(error))


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - started
