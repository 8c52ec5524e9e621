"""Program 2: pruning in rounds while training, the pipeline of Lubana & Dick (2021).

An epoch, score, prune, in rounds; then training to the end. Every run is a file of its
own, written whole when it ends; a run whose file is there is not run again, so an
experiment that was stopped resumes where it was.
"""

import functools
import io
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments import diagnostics, records
from experiments.config import Rounds
from experiments.data import Dataset, Split, balanced
from experiments.measures import MEASURES, Evidence
from experiments.models import Network, network
from experiments.training import State, cross_entropy, evaluate, gradients, update


class Row(NamedTuple):
    """A row of the results: what is pruned by what, how much, in how many rounds."""

    measure: str
    level: str
    fraction: float
    rounds: int

    def file(self, seed: int) -> str:
        """The name of the file of one run."""
        return (
            f"{self.measure}-{self.level}-{self.fraction:g}-{self.rounds}-{seed}.json"
        )


DENSE = Row("dense", "weights", 0.0, 0)


def plan(config: Rounds) -> list[Row]:
    """All rows: the dense network first, filters before weights, which follow them."""
    return [DENSE] + [
        Row(measure, level, fraction, rounds)
        for fraction in config.fractions
        for rounds in config.rounds
        for measure in config.measures
        for level in sorted(config.levels)
        if level == "filters" or MEASURES[measure].has_weights
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
    records.claim(folder, config, seeds=1)  # A run a seed: their number may change.
    trainer = Trainer(config, dataset)
    root = jax.random.key(config.seed, impl="rbg")  # Compiles faster than threefry.
    for seed in range(config.seeds):
        key, lab = jax.random.fold_in(root, seed), None
        for row in plan(config):
            if (folder / row.file(seed)).exists():
                on_epoch(row, seed, config.epochs)
                continue
            lab = lab or prepare(config, dataset, trainer, key)
            started = time.perf_counter()
            found = run_row(lab, row, folder, seed, on_epoch)
            seconds = time.perf_counter() - started
            stored = {**row._asdict(), "seed": seed, "seconds": seconds, **found}
            records.save(folder / row.file(seed), stored)
    return [
        records.load(folder / row.file(seed))
        for row in plan(config)
        for seed in range(config.seeds)
    ]


class Lab(NamedTuple):
    """What all runs of one seed share; the state is the one after the first epoch."""

    config: Rounds
    dataset: Dataset
    trainer: "Trainer"
    groups: Any
    scored: Split
    origin: Any
    state: "Tracked"
    loss: float
    epoch_keys: jax.Array
    score_keys: jax.Array

    @property
    def whole(self) -> Any:
        """The mask that removes nothing."""
        return jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), self.origin)


def prepare(
    config: Rounds, dataset: Dataset, trainer: "Trainer", key: jax.Array
) -> Lab:
    init_key, batch_key, epochs_key, scores_key = jax.random.split(key, 4)
    params, stats = jax.jit(trainer.network.init)(init_key)
    epoch_keys = jax.random.split(epochs_key, config.epochs)
    state, loss = trainer.epoch(trainer.begin(params, stats), epoch_keys[0], 0)
    apply, images = _timed(trainer.network, stats, dataset)
    return Lab(
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
    lab: Lab,
    row: Row,
    folder: pathlib.Path,
    seed: int,
    on_epoch: Callable[[Row, int, int], None],
) -> dict[str, Any]:
    """Runs one row for one seed."""
    config, trainer = lab.config, lab.trainer
    mask, masks = lab.whole, {}
    state, loss = jax.tree.map(jnp.copy, lab.state), lab.loss
    dense, counts = _dense_logits(folder, row, seed), _filter_counts(folder, row, seed)
    epochs, prunes, logits = [], [], []
    for number in range(config.epochs):
        if number > 0:
            state, loss = trainer.epoch(state, lab.epoch_keys[number], number)
        on_epoch(row, seed, 1)
        found = trainer.look(state, lab.dataset.validation)
        logits.append(found.logits)
        epoch: dict[str, Any] = {
            "train_loss": loss,
            "validation_accuracy": found.accuracy,
            "test_accuracy": trainer.look(state, lab.dataset.test).accuracy,
            "distance_to_dense": diagnostics.logit_distance(
                found.logits, dense[number] if dense else found.logits
            ),
        }
        evidence = None
        if row == DENSE or number < row.rounds:
            evidence = gather_evidence(lab, state, lab.score_keys[number])
            flow = evidence.flow
        else:
            flow = trainer.flow(state, lab.scored, config.temperature)
        epoch["flow"] = diagnostics.rates(flow)
        if row == DENSE:
            epoch["measures"], masks = compare_measures(lab, evidence, masks)
        epochs.append(epoch)
        if number < row.rounds:
            count = counts[number] if counts else None
            new = prune(lab, row, number + 1, evidence, mask, count)
            pruned = trainer.restart(state, new)
            prunes.append(describe_prune(lab, state, pruned, evidence, mask, new))
            state, mask = pruned, new
    if row == DENSE:
        buffer = io.BytesIO()
        np.savez(buffer, *logits)
        records.write(folder / _LOGITS.format(seed), buffer.getvalue())
    timed = seed == 0 and row.level == "filters"
    # The last epoch, and the one best on validation once all pruning is done.
    best = max(
        range(row.rounds, len(epochs)), key=lambda n: epochs[n]["validation_accuracy"]
    )
    return {
        "test_accuracy": epochs[-1]["test_accuracy"],
        "validation_accuracy": epochs[-1]["validation_accuracy"],
        "best_epoch": best + 1,
        "test_accuracy_at_best": epochs[best]["test_accuracy"],
        **measure_size(lab, state.state, mask, row.level),
        "latency": measure_latency(lab, state.state, mask) if timed else None,
        "epochs": epochs,
        "prunes": prunes,
    }


_LOGITS = "dense-{}.npz"


def _dense_logits(folder: pathlib.Path, row: Row, seed: int) -> list[np.ndarray]:
    """The dense network's logits after every epoch; none for the dense row itself."""
    if row == DENSE:
        return []
    with np.load(folder / _LOGITS.format(seed)) as stored:
        return [stored[name] for name in stored.files]


def _filter_counts(folder: pathlib.Path, row: Row, seed: int) -> list[int]:
    """How many parameters the filters' run of a weights' row had after each round."""
    found = records.load(folder / row._replace(level="filters").file(seed))
    if row.level == "filters" or row == DENSE or found is None:
        return []
    return [prune["parameters"] for prune in found["prunes"]]


# One pruning.


def gather_evidence(lab: Lab, state: "Tracked", key: jax.Array) -> Evidence:
    config, flow = lab.config, functools.partial(lab.trainer.flow, state, lab.scored)
    return Evidence(
        flow(config.temperature),
        flow(config.grasp_temperature),
        flow(1.0),
        lab.origin,
        state.tracked,
        key,
    )


def prune(
    lab: Lab, row: Row, done: int, evidence: Any, mask: Any, count: int | None
) -> Any:
    """The mask after ``done`` rounds, inside the mask so far.

    Single weights are pruned to ``count`` parameters, if it is given.
    """
    measure = MEASURES[row.measure]
    fraction = float(jp.hyperbolic_schedule(row.fraction, row.rounds)(done))
    if row.level == "weights":
        if count is not None:  # All parameters, of which only some are prunable.
            sizes = [leaf.size for leaf in jax.tree.leaves(lab.origin)]
            flags = jax.tree.leaves(jp.matrices(lab.origin))
            prunable = sum(n for n, flag in zip(sizes, flags, strict=True) if flag)
            fraction = (sum(sizes) - count) / prunable
        return jp.global_mask(measure.weights(evidence), fraction, prior=mask)
    kept = jax.tree.map(jnp.float32, mask)
    scores = [
        jnp.where(left > 0, score, -jnp.inf)  # Removed filters rank last.
        for score, left in zip(
            measure.filters(evidence, lab.groups),
            jp.structured.group_scores(kept, lab.groups),
            strict=True,
        )
    ]
    return jp.structured.structured_mask(
        scores,
        lab.groups,
        lab.origin,
        fraction,
        scope=measure.scope,
        min_keep=lab.config.min_keep,
    )


def describe_prune(
    lab: Lab, before: "Tracked", after: "Tracked", evidence: Any, old: Any, new: Any
) -> dict[str, Any]:
    """What a pruning was predicted to change, and what it changed."""
    flow = lab.trainer.flow(after, lab.scored, lab.config.temperature)
    flows = (evidence.flow, flow)
    return {
        "parameters": int(sum(m.sum() for m in jax.tree.leaves(new))),
        "loss": [lab.trainer.look(s, lab.scored).loss for s in (before, after)],
        "squared_gradient": [diagnostics.rates(f)["squared_gradient"] for f in flows],
        "predicted": diagnostics.predicted_changes(evidence.flow, old, new),
        "distance": diagnostics.mask_distance(old, new),
        "contribution_share": diagnostics.contribution_share(
            before.contribution, old, new
        ),
    }


def compare_measures(
    lab: Lab, evidence: Any, before: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How alike the measures are, and how far their masks moved since ``before``."""
    fraction = max(lab.config.fractions)
    rows = {name: Row(name, "filters", fraction, 1) for name in lab.config.measures}
    masks = {
        name: prune(lab, row, 1, evidence, lab.whole, None)
        for name, row in rows.items()
    }
    scores = {
        name: MEASURES[name].weights(evidence)
        for name in lab.config.measures
        if MEASURES[name].has_weights
    }
    found = {
        "correlations": diagnostics.correlations(scores),
        "mask_distance": {
            name: diagnostics.mask_distance(before[name], mask)
            for name, mask in masks.items()
            if name in before
        },
    }
    return found, masks


# Training.


class Tracked(NamedTuple):
    r"""What a step changes; the last two are like the parameters.

    Attributes:
      state: the network's.
      contribution: :math:`\sum_t \eta_t g_i(t)^2`, to first order the contribution of a
        weight to the fall of the loss so far.
      tracked: the moving average of :math:`\theta^2 |g|` over the minibatches.
    """

    state: State
    contribution: Any
    tracked: Any


class Outcome(NamedTuple):
    """A network's outputs on images: loss, accuracy in [0, 1], logits ``[N, C]``."""

    loss: float
    accuracy: float
    logits: np.ndarray


class Trainer:
    """The functions of one network on one data set; each compiles once."""

    def __init__(self, config: Rounds, dataset: Dataset):
        self.config, self.dataset = config, dataset
        self.network = network(config.model, dataset.image_shape, dataset.classes)
        self.begin = jax.jit(self._begin)
        self.restart = jax.jit(self._restart)
        self._jitted_step = jax.jit(self._step, donate_argnums=0)
        self._logits = jax.jit(functools.partial(evaluate, self.network))
        self._scored = self._scored_loss  # One object: programs are kept by function.

    def _optimizer(self, rate: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.config.weight_decay),
            optax.sgd(rate, self.config.momentum),
            jp.keep_sparse(),
        )

    def _begin(self, params: Any, stats: Any) -> Tracked:
        """The state of a whole network."""
        zeros = jax.tree.map(jnp.zeros_like, params)
        state = State(params, stats, self._optimizer(0.0).init(params))
        return jax.tree.map(jnp.copy, Tracked(state, zeros, zeros))

    def _restart(self, given: Tracked, mask: Any) -> Tracked:
        """Prunes, with a new optimizer."""
        params, stats, _ = given.state
        opt_state = jp.set_mask(self._optimizer(0.0).init(params), mask)
        pruned = State(jp.apply_mask(params, mask), stats, opt_state)
        return jax.tree.map(jnp.copy, given._replace(state=pruned))

    def _step(
        self,
        given: Tracked,
        rate: jax.Array,
        key: jax.Array,
        train: Split,
        index: jax.Array,
    ) -> tuple[Tracked, jax.Array]:
        config, state = self.config, given.state
        loss, stats, grads = gradients(
            self.network,
            self.dataset,
            state.params,
            state.stats,
            Split(train.images[index], train.labels[index]),
            key,
            augmented=config.data.augment,
            temperature=config.temperature,
        )
        contribution = jax.tree.map(
            lambda c, g: c + rate * g**2, given.contribution, grads
        )
        new = config.tracked_weight
        tracked = jax.tree.map(
            lambda t, p, g: new * p**2 * jnp.abs(g) + (1 - new) * t,
            given.tracked,
            state.params,
            grads,
        )
        state = update(self._optimizer(rate), state, stats, grads)
        return Tracked(state, contribution, tracked), loss

    def epoch(
        self, state: Tracked, key: jax.Array, number: int
    ) -> tuple[Tracked, float]:
        """Trains for an epoch; returns the mean loss as well. Consumes the state."""
        config, train = self.config, self.dataset.train
        drops = sum(number >= share * config.epochs for share in (0.5, 0.75))
        rate = jnp.float32(config.learning_rate * 0.1**drops)
        order_key, step_key = jax.random.split(key)
        order = np.asarray(jax.random.permutation(order_key, len(train.labels)))
        steps = len(order) // config.batch_size
        losses = []
        for index in order[: steps * config.batch_size].reshape(steps, -1):
            step_key, key = jax.random.split(step_key)
            state, loss = self._jitted_step(state, rate, key, train, jnp.asarray(index))
            losses.append(loss)
        return state, float(jnp.stack(losses).mean())

    def look(self, given: Tracked, split: Split) -> Outcome:
        """Runs the network in eval mode."""
        params, stats, _ = given.state
        logits = jnp.concatenate(
            [self._logits(params, stats, part.images) for part in self._cut(split)]
        )
        loss = cross_entropy(logits, split.labels, self.config.temperature)
        accuracy = (logits.argmax(-1) == split.labels).mean()
        return Outcome(float(loss), float(accuracy), np.asarray(logits))

    def flow(self, given: Tracked, split: Split, temperature: float) -> jp.Flow:
        """The gradient flow, order 2, in eval mode."""
        scored = [
            (part, given.state.stats, jnp.float32(temperature))
            for part in self._cut(split)
        ]
        return jp.mean_flow(self._scored, given.state.params, scored)

    def _scored_loss(self, params: Any, batch: tuple[Split, Any, Any]) -> jax.Array:
        split, stats, temperature = batch
        logits = evaluate(self.network, params, stats, split.images)
        return cross_entropy(logits, split.labels, temperature)

    def _cut(self, split: Split, size: int = 250) -> Sequence[Split]:
        """Cuts a split into standardized batches; the last may be smaller."""
        starts = range(0, len(split.labels), size)
        parts = [jax.tree.map(lambda x, i=i: x[i : i + size], split) for i in starts]
        return [Split(self.dataset.standardize(x), labels) for x, labels in parts]


# How small, cheap and fast a pruned network is: counted, and measured.

_BATCH, _TIMES = 100, 25


def _timed(net: Network, stats: Any, dataset: Dataset) -> tuple[Any, jax.Array]:
    """A network in eval mode, and a batch for it."""
    images = dataset.standardize(dataset.test.images[:_BATCH])
    return lambda params, x: evaluate(net, params, stats, x), images


def measure_size(lab: Lab, state: State, mask: Any, level: str) -> dict[str, Any]:
    """Counts parameters and the FLOPs of one image.

    Filters are really removed. Single weights are not: the FLOPs are those that
    hardware could skip, and the program costs the same as before.
    """
    apply, images = _timed(lab.trainer.network, state.stats, lab.dataset)
    if level == "weights":
        cost = jp.cost(apply, state.params, images, mask=mask)
        return {"parameters": int(cost.nonzero), "flops": cost.sparse_flops / _BATCH}
    small, params = jp.structured.shrink(apply, state.params, mask, lab.groups)
    cost = jp.cost(small, params, images)
    return {"parameters": int(cost.params), "flops": cost.flops / _BATCH}


def measure_latency(lab: Lab, state: State, mask: Any) -> dict[str, float]:
    """Times a batch in the masked and in the shrunk network, and compares outputs.

    Returns:
      Seconds, "masked" and "small", and the largest "difference" of an output, relative
      to the largest output.
    """
    apply, images = _timed(lab.trainer.network, state.stats, lab.dataset)
    masked = jax.jit(apply)
    small, params = jp.structured.shrink(apply, state.params, mask, lab.groups)
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
