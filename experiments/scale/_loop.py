"""The loop: mesh, data, shapes, shardings, arrays, score and mask, steps."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config import Scaled
from experiments.data import Dataset, Split, balanced
from experiments.models import network
from experiments.scale import _mesh
from experiments.scale._checkpoints import Keeper
from experiments.scale._feed import Feed, held_out, place
from experiments.scale._log import Log
from experiments.scale._programs import Programs, State, programs


class Outcome(NamedTuple):
    """What a run ends with.

    Attributes:
      state: the last one.
      mask: of the network as it is run.
      metrics: accuracies in [0, 1], and the sparsity reached.
    """

    state: State
    mask: Any
    metrics: dict[str, float]


def train(
    config: Scaled,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    devices: Sequence[Any] | None = None,
    show: bool = False,
) -> Outcome:
    """Trains one network, from where the folder's run stood.

    Args:
      config: the run.
      dataset: its images in host memory, from `experiments.data.read`; every process
        passes all of them and uses those of its own devices.
      folder: where checkpoints and metrics go; all processes share it.
      devices: those to use; None is all, of all processes.
      show: whether to show a progress bar.

    Raises:
      ValueError: if devices, batch and microbatches do not divide.
      CheckpointError: if the folder holds checkpoints, but none that can be used.
    """
    mesh = _mesh.mesh_of(config.parallel, devices)
    parallel = config.parallel
    feed = Feed(
        dataset.train, mesh, config.batch_size, parallel.microbatches, config.seed
    )
    net = network(config.model, dataset.image_shape, dataset.classes)
    run = programs(config, net, dataset, mesh, feed.steps)
    total = feed.steps * config.epochs

    keeper = Keeper(folder / "checkpoints", config, feed.steps)
    metrics: dict[str, float] = {}
    with contextlib.closing(keeper):
        state = keeper.restore(run.shapes)
        if state is None:
            state = run.init(jax.random.key(config.seed))
        first = int(jax.device_get(state.step))
        with Log(config, folder, first, total, show) as log:
            for step in range(first, total):
                if run.prune is not None and step == run.warmup * feed.steps:
                    state = run.prune(state, _scored(config, dataset, mesh))
                batch = feed(step)
                with jax.transfer_guard("disallow"):
                    state, loss = run.step(state, batch)
                    log.step(step + 1, loss)
                if (step + 1) % feed.steps == 0:
                    metrics = _evaluate(run, state, dataset, mesh)
                    log.write(step + 1, metrics)
                if (step + 1) % config.checkpoints.every == 0 or step + 1 == total:
                    keeper.save(state, step + 1)
    metrics = metrics or _evaluate(run, state, dataset, mesh)
    return Outcome(state, run.mask(state), metrics)


def _scored(config: Scaled, dataset: Dataset, mesh: jax.sharding.Mesh) -> Split:
    """The images that are scored, a copy on every device."""
    key = jax.random.key(config.seed + 1)
    chosen = balanced(dataset.train, config.pruning.examples_per_class, key)
    return place(chosen, np.arange(len(chosen.labels)), _mesh.copied(mesh))


def _evaluate(
    run: Programs, state: State, dataset: Dataset, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Accuracies, and the sparsity reached."""
    right = {name: 0 for name in ("validation", "test")}
    for name, batch in held_out(dataset, mesh, _EVAL_BATCH):
        right[name] += int(jax.device_get(run.right(state, batch)))
    return {
        **{name: n / dataset.sizes[name] for name, n in right.items()},
        "sparsity": float(jax.device_get(run.sparsity(state))),
    }


_EVAL_BATCH = 512
