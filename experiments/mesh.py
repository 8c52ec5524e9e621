"""Program 3: one network on any devices, of one process or many, resumable.

`comparison` holds all images and seeds, and the steps of an epoch, on one device. Here
each process feeds the images of its own devices, step by step, a mesh says where every
array is, and a run that is killed resumes from its newest checkpoint.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxprune as jp
from experiments.checkpoints import CheckpointError as CheckpointError
from experiments.checkpoints import Keeper
from experiments.config import Pruning, Scaled
from experiments.data import Dataset, Split, balanced
from experiments.feed import Feed, copied, held_out, mesh_of, place, split, spread
from experiments.log import Log
from experiments.methods import METHODS, Choose, Start
from experiments.models import Network, network
from experiments.training import State, View, evaluate, gradients, optimizer_of, update

_EVAL_BATCH = 512


class Progress(NamedTuple):
    """The content of a checkpoint."""

    step: jax.Array  # Optimizer steps so far, which is the position in the data.
    state: State


def train(
    config: Scaled,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    devices: Sequence[Any] | None = None,
    show: bool = False,
) -> tuple[State, Any, dict[str, float]]:
    """Trains one network, from where the run in the folder stopped.

    Args:
      config: the run.
      dataset: its images in host memory, from `experiments.data.read`; every process
        passes all of them, and its devices hold a part.
      folder: for checkpoints and metrics; all processes share it.
      devices: the devices to use; None is all, of all processes.
      show: whether to show a progress bar.

    Returns:
      The last state, the mask that the network runs with, and the metrics.

    Raises:
      ValueError: if devices, batch and microbatches do not divide.
      CheckpointError: if the folder holds checkpoints, but none can be used.
    """
    mesh = mesh_of(config.parallel, devices)
    microbatches = config.parallel.microbatches
    feed = Feed(dataset.train, mesh, config.batch_size, microbatches, config.seed)
    run = programs(config, dataset, mesh, feed.steps)
    total = feed.steps * config.epochs
    key = jax.jit(lambda key: key, out_shardings=copied(mesh))(
        jax.random.key(config.seed)
    )
    metrics: dict[str, float] = {}
    with contextlib.closing(Keeper(folder / "checkpoints", config)) as keeper:
        progress = keeper.restore(run.shapes)
        if progress is None:
            progress = run.init(key)
        first = int(jax.device_get(progress.step))
        with Log(config, folder, first, total, show) as log:
            for step in range(first, total):
                if run.prune is not None and step == run.warmup * feed.steps:
                    progress = run.prune(progress, _scored(config, dataset, mesh), key)
                batch = feed(step)
                with jax.transfer_guard("disallow"):
                    progress, loss = run.step(progress, batch, key)
                    log.step(step + 1, loss)
                if (step + 1) % feed.steps == 0:
                    metrics = _evaluate(run, progress.state, key, dataset, mesh)
                    log.write(step + 1, metrics)
                if (step + 1) % config.checkpoints.every == 0 or step + 1 == total:
                    keeper.save(progress, step + 1)
    state = progress.state
    metrics = metrics or _evaluate(run, state, key, dataset, mesh)
    return state, run.mask(state, key), metrics


def _scored(config: Scaled, dataset: Dataset, mesh: Mesh) -> Split:
    """The images that are scored, with a copy on every device."""
    key = jax.random.key(config.seed + 1)
    chosen = balanced(dataset.train, config.pruning.examples_per_class, key)
    return place(chosen, np.arange(len(chosen.labels)), copied(mesh))


def _evaluate(
    run: "Programs", state: State, key: jax.Array, dataset: Dataset, mesh: Mesh
) -> dict[str, float]:
    """Accuracies in [0, 1], and the sparsity reached."""
    right = {name: 0 for name in ("validation", "test")}
    for name, batch in held_out(dataset, mesh, _EVAL_BATCH):
        right[name] += int(jax.device_get(run.right(state, batch, key)))
    return {
        **{name: n / dataset.sizes[name] for name, n in right.items()},
        "sparsity": float(jax.device_get(run.sparsity(state, key))),
    }


# The compiled functions: abstract shapes first, then shardings, then arrays.

_WEIGHTS, _OPTIMIZER, _MASK, _TRAINING = range(4)  # Folded into the root key.


@dataclasses.dataclass
class Phases:
    """A `methods.Setup` that only records what to do, as a run may resume anywhere."""

    options: Pruning
    network: Network
    epochs: int
    steps: int
    warmup: int = 0  # Dense epochs before pruning.
    choose: Choose | None = None  # None: the method prunes during training alone.

    def dense(self, epochs: int) -> Start:
        self.warmup = epochs
        return Start(None, None, None)

    def prune(self, start: Start, choose: Choose, sparsity: float) -> Start:
        del sparsity
        self.choose = choose
        return start


class Programs(NamedTuple):
    """Compiled functions; those that return a new progress donate the old one."""

    shapes: Progress  # With shardings, and no arrays.
    init: Callable[[jax.Array], Progress]  # Dense.
    prune: Callable[[Progress, Split, jax.Array], Progress] | None
    step: Callable[[Progress, Split, jax.Array], tuple[Progress, jax.Array]]
    right: Callable[[State, Split, jax.Array], jax.Array]  # Counts right answers.
    mask: Callable[[State, jax.Array], Any]  # The network runs with it.
    sparsity: Callable[[State, jax.Array], jax.Array]
    warmup: int  # Dense epochs before `prune`.


def programs(config: Scaled, dataset: Dataset, mesh: Mesh, steps: int) -> Programs:
    """Builds the functions for ``steps`` steps an epoch; each compiles once."""
    net = network(config.model, dataset.image_shape, dataset.classes)
    net = _computed_in(net, jnp.dtype(config.parallel.compute))
    phases = Phases(config.pruning, net, config.epochs, steps * config.epochs)
    recipe = METHODS[config.method].start(phases, config.sparsity).recipe
    plain = optimizer_of(config, steps)

    def optimizer(key: jax.Array) -> optax.GradientTransformationExtraArgs:
        key = jax.random.fold_in(key, _OPTIMIZER)
        return recipe.optimizer(phases, plain, jnp.float32(config.sparsity), key)

    def build(key: jax.Array) -> Progress:
        params, stats = net.init(jax.random.fold_in(key, _WEIGHTS))
        state = State(params, stats, optimizer(key).init(params))
        return Progress(jnp.zeros([], jnp.int32), state)

    shapes = jax.eval_shape(build, jax.eval_shape(jax.random.key, 0))
    shardings = jax.tree.map(functools.partial(split, mesh), shapes)
    shapes = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        shardings,
    )

    def prune(progress: Progress, batch: Split, key: jax.Array) -> Progress:
        assert phases.choose is not None
        params, stats, _ = progress.state
        # The devices need not divide the number of images.
        cut = functools.partial(
            jax.lax.with_sharding_constraint, shardings=spread(mesh, 0)
        )
        batch = Split(dataset.standardize(batch.images), batch.labels)
        batch = jax.tree.map(cut, batch)
        own_key = jax.random.fold_in(key, _MASK)
        view = View(own_key, stats, batch, net, config.pruning)
        params, mask = phases.choose(view, params, config.sparsity)
        opt_state = optimizer(key).init(params)
        opt_state = optax.tree.set(opt_state, count=progress.step)
        params, opt_state = jp.apply_mask(params, mask), jp.set_mask(opt_state, mask)
        return progress._replace(state=State(params, stats, opt_state))

    def step(
        progress: Progress, batch: Split, key: jax.Array
    ) -> tuple[Progress, jax.Array]:
        state = progress.state
        root = jax.random.fold_in(key, _TRAINING)
        root = jax.random.fold_in(root, progress.step)
        keys = jax.random.split(root, len(batch.labels))

        def part(
            carry: tuple[Any, Any], given: tuple[jax.Array, Split]
        ) -> tuple[tuple[Any, Any], jax.Array]:
            (stats, total), (own_key, images_and_labels) = carry, given
            loss, stats, grads = gradients(
                net,
                dataset,
                state._replace(stats=stats),
                images_and_labels,
                own_key,
                augmented=config.data.augment,
                # One mask for all microbatches.
                sparse=lambda loss: recipe.sparse(
                    loss, jnp.float32(config.sparsity), keys[0]
                ),
            )
            return (stats, jax.tree.map(jnp.add, total, grads)), loss

        nothing = jax.tree.map(jnp.zeros_like, state.params)
        (stats, total), losses = jax.lax.scan(
            part,
            (state.stats, nothing),
            (keys, batch),
            unroll=len(batch.labels) == 1,  # On CPUs loops slow convolutions down.
        )
        grads = jax.tree.map(lambda g: g / len(losses), total)
        state = update(optimizer(key), state, stats, grads)
        return Progress(progress.step + 1, state), losses.mean()

    def mask(state: State, key: jax.Array) -> Any:
        key = jax.random.fold_in(key, _MASK)
        given = jnp.float32(config.sparsity), key
        return recipe.mask(state.params, state.opt_state, *given)

    def right(state: State, batch: Split, key: jax.Array) -> jax.Array:
        params = jp.apply_mask(state.params, mask(state, key))
        images = dataset.standardize(batch.images)
        logits = evaluate(net, params, state.stats, images)
        return (logits.argmax(-1) == batch.labels).sum()

    def sparsity(state: State, key: jax.Array) -> jax.Array:
        return jp.sparsity(mask(state, key), state.params)

    whole = copied(mesh)
    pruned = jax.jit(prune, out_shardings=shardings, donate_argnums=0)
    return Programs(
        shapes=shapes,
        init=jax.jit(build, out_shardings=shardings),
        prune=None if phases.choose is None else pruned,
        step=jax.jit(step, out_shardings=(shardings, whole), donate_argnums=0),
        right=jax.jit(right, out_shardings=whole),
        mask=jax.jit(mask, out_shardings=shardings.state.params),
        sparsity=jax.jit(sparsity, out_shardings=whole),
        warmup=phases.warmup,
    )


def _computed_in(net: Network, dtype: Any) -> Network:
    """The network that computes in ``dtype``, on float32 parameters, to float32."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if x.dtype == jnp.float32 else x

    def apply(
        params: Any, stats: Any, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        given = jax.tree.map(cast, (params, images))
        logits, stats = net.apply(given[0], stats, given[1], train=train)
        return logits.astype(jnp.float32), stats

    return net if dtype == jnp.float32 else Network(net.init, apply)
