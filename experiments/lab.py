"""What all rows of a comparison share: networks, batches, compiled programs."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.config import Config
from experiments.data import Dataset, Split, balanced
from experiments.imp import Link
from experiments.models import Network, network
from experiments.pruners import PRUNERS, VARIANTS, Pruner, Recipe
from experiments.train import Metrics, State, Trainer, trainer


class Keys(NamedTuple):
    """The random keys of every seed."""

    params: jax.Array
    batches: jax.Array
    masks: jax.Array
    training: jax.Array


@dataclasses.dataclass
class Lab:
    """What all rows share; trees have a leading axis of seeds, ``[S, ...]``.

    Attributes:
      config: the experiment.
      dataset: its images.
      network: what is trained.
      steps: of the optimizer, an epoch.
      keys: all of them.
      params: the parameters at initialisation.
      stats: the running statistics then.
      batches: what is scored, one a seed.
      trainer: the compiled programs.
      pruners: those made so far: one object each, as it holds what is compiled.
      tickets: the links of the one chain of iterative pruning, once it was run.
      ended: what `trained` returned, once it was asked.
    """

    config: Config
    dataset: Dataset
    network: Network
    steps: int
    keys: Keys
    params: Any
    stats: Any
    batches: list[Split]
    trainer: Trainer
    pruners: dict[tuple[str, str], Pruner] = dataclasses.field(default_factory=dict)
    tickets: dict[float, Link] = dataclasses.field(default_factory=dict)
    ended: tuple[State, list[Metrics]] | None = None

    @property
    def whole(self) -> Any:
        """Masks that remove nothing."""
        return jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), self.params)

    @property
    def dense(self) -> Pruner:
        """What removes nothing."""
        return self.pruner("dense")

    def pruner(self, method: str, variant: str = "") -> Pruner:
        """A method's pruner, or that of one of its variants."""
        variants = VARIANTS.get(method, {})
        variant = variant if variant in variants else ""
        if (method, variant) not in self.pruners:
            # What trains networks to find a mask is trained as the dense ones are.
            factory = variants.get(variant, PRUNERS.get(method, PRUNERS["dense"]))
            steps = self.steps * self.config.epochs
            made = factory(self.config.pruning, self.network, steps)
            self.pruners[method, variant] = made
        return self.pruners[method, variant]

    def trained(self) -> tuple[State, list[Metrics]]:
        """The dense networks after all epochs; trained when first asked for."""
        if self.ended is None:
            epochs = range(self.config.epochs)
            self.ended = self.train(self.dense.recipe, self.whole, epochs)
        return self.ended

    def init(self, keys: jax.Array) -> tuple[Any, Any]:
        """Draws parameters, and the statistics that go with them."""
        return _init(self.network, keys)

    def train(
        self,
        recipe: Recipe,
        mask: Any,
        epochs: range,
        *,
        params: Any = None,
        stats: Any = None,
        opt_state: Any = None,
        sparsity: float = 0.0,
        keys: Keys | None = None,
        on_epoch: Callable[[], None] = lambda: None,
    ) -> tuple[State, list[Metrics]]:
        """Trains, from initialisation and with every seed's keys if not told otherwise.

        The optimizer is a new one unless its state is given.

        Whatever has a leading axis may have it of another length than the seeds.
        """
        keys = keys or self.keys
        params = self.params if params is None else params
        stats = self.stats if stats is None else stats
        step = jnp.int32(epochs.start * self.steps)
        state = self.trainer.start(
            recipe, params, stats, mask, keys.masks, step, opt_state
        )
        history = []
        for epoch in epochs:
            epoch_keys = _fold_in(keys.training, epoch)
            state, metrics = self.trainer.epoch(
                recipe, state, epoch_keys, jnp.float32(sparsity), self.dataset
            )
            history.append(jax.device_get(metrics))
            on_epoch()
        return state, history


def prepare(config: Config, dataset: Dataset) -> Lab:
    """Draws the networks and the batches, and builds what is compiled later."""
    net = network(config.model, dataset.image_shape, dataset.classes)
    steps = len(dataset.train.labels) // config.batch_size
    root = jax.random.key(config.seed, impl="rbg")  # Compiles faster than threefry.
    keys = Keys(*jax.random.split(root, (4, config.seeds)))
    params, stats = _init(net, keys.params)
    batches = [_scoring_batch(config, dataset, key) for key in keys.batches]
    train = trainer(config, net, steps)
    return Lab(config, dataset, net, steps, keys, params, stats, batches, train)


def _init(net: Network, keys: jax.Array) -> tuple[Any, Any]:
    return jax.jit(lambda keys: jax.lax.map(net.init, keys))(keys)


def _scoring_batch(config: Config, dataset: Dataset, key: jax.Array) -> Split:
    batch = balanced(dataset.train, config.pruning.examples_per_class, key)
    return Split(dataset.standardise(batch.images), batch.labels)


_fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
