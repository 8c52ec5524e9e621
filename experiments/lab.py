"""The networks of a comparison: drawn, trained and pruned together, `S` seeds at once.

One compiled epoch serves every mask, sparsity and seed: everything that differs is an
argument with a leading axis of seeds, the mask in the optimizer state included.
"""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.config import Config
from experiments.data import Dataset, Split, balanced
from experiments.methods import Choose, Recipe, Start, stacked, unstacked
from experiments.models import network
from experiments.training import State, View, evaluate, gradients, optimizer_of, update


class Metrics(NamedTuple):
    """After an epoch: mean training loss, accuracies in [0, 1], sparsity reached."""

    loss: jax.Array
    validation: jax.Array
    test: jax.Array
    sparsity: jax.Array


class Keys(NamedTuple):
    """The random keys of every seed."""

    params: jax.Array
    batches: jax.Array
    masks: jax.Array
    training: jax.Array


class Lab:
    """What all rows share, and a `methods.Setup`; trees have a leading axis of seeds.

    Attributes:
      options: those of the methods.
      network: the network.
      epochs: of a training.
      steps: of the optimizer, in a training.
      seeds: how many networks.
      keys: their random keys.
      batches: the scoring batch of each seed.
    """

    def __init__(self, config: Config, dataset: Dataset):
        """Draws the networks and the batches; nothing is compiled for training yet."""
        self.config, self.dataset, self.options = config, dataset, config.pruning
        self.epochs, self.seeds = config.epochs, config.seeds
        self.network = network(config.model, dataset.image_shape, dataset.classes)
        self.steps_an_epoch = len(dataset.train.labels) // config.batch_size
        self.steps = self.steps_an_epoch * config.epochs
        root = jax.random.key(config.seed, impl="rbg")  # Compiles faster than threefry.
        self.keys = Keys(*jax.random.split(root, (4, config.seeds)))
        params, stats = self.init(self.keys.params)
        mask = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params)
        self._whole = Start(params, stats, mask)
        self.batches = [self._scoring_batch(key) for key in self.keys.batches]
        self._invert = False
        self._once: dict[Any, Any] = {}
        self._tx = optimizer_of(config, self.steps_an_epoch)
        # The state has the key: after its start, the optimizer does not read this one.
        self._unused = jax.random.key(0, impl="rbg")

    def init(self, keys: jax.Array) -> tuple[Any, Any]:
        """Draws parameters, and the statistics that go with them."""
        return jax.jit(lambda keys: jax.lax.map(self.network.init, keys))(keys)

    def _scoring_batch(self, key: jax.Array) -> Split:
        batch = balanced(self.dataset.train, self.options.examples_per_class, key)
        return Split(self.dataset.standardize(batch.images), batch.labels)

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Makes something when it is first asked for."""
        if name not in self._once:
            self._once[name] = make()
        return self._once[name]

    def inverted(self) -> "Lab":
        """The same lab, where the weights that score lowest stay."""
        lab = object.__new__(Lab)
        lab.__dict__.update(self.__dict__, _invert=True)
        return lab

    def compile(self) -> None:
        """Compiles an epoch, so that what follows can be timed."""
        self.once("compiled", lambda: self.train(self.dense(0), 1))

    def dense(self, epochs: int) -> Start:
        """Trains whole networks, once for each number of epochs."""
        if not epochs:
            return self._whole

        def run() -> Start:
            self.compile()
            began = time.perf_counter()
            state, history = self.train(self._whole, epochs)
            seconds = (time.perf_counter() - began) / self.seeds
            return _trained(self._whole, state, history, seconds)

        return self.once(("dense", epochs), run)

    def dense_until(
        self, trigger: jp.Trigger, view: Callable[[Any], Any], start: Start
    ) -> Start:
        """Trains until the triggers of most seeds have fired.

        All seeds stop after the same epoch, at the latest with half of training to go.

        Args:
          trigger: of one network.
          view: ``view(params)``, what the trigger is updated with.
          start: where it begins to look.
        """
        look = jax.jit(jax.vmap(lambda p, state: trigger.update(view(p), state)))
        states, fired = jax.vmap(trigger.init)(start.params), np.zeros(self.seeds, bool)
        self.compile()
        look(start.params, states)
        began = time.perf_counter()
        while start.first < self.epochs // 2 and 2 * fired.sum() <= len(fired):
            state, history = self.train(start, start.first + 1)
            due, states = look(state.params, states)
            fired |= np.asarray(due)
            start = _trained(start, state, history, 0.0)
        seconds = (time.perf_counter() - began) / self.seeds
        return start._replace(pruning_seconds=start.pruning_seconds + seconds)

    def prune(self, start: Start, choose: Choose, sparsity: float) -> Start:
        """Chooses the masks of all seeds, one network at a time, and times it."""
        found, seconds = [], []
        each = unstacked((start.params, start.stats))
        for (params, stats), key, batch in zip(
            each, self.keys.masks, self.batches, strict=True
        ):
            view = View(key, stats, batch, self.network, self.options, self._invert)
            if not found:  # Compiles.
                jax.block_until_ready(choose(view, params, sparsity))
            began = time.perf_counter()
            found.append(jax.block_until_ready(choose(view, params, sparsity)))
            seconds.append(time.perf_counter() - began)
        params, mask = stacked(found)
        median = statistics.median(seconds)
        return start._replace(
            params=params,
            mask=mask,
            opt_state=None,
            score_seconds=median,
            pruning_seconds=start.pruning_seconds + median,
        )

    def train(
        self,
        start: Start,
        until: int,
        sparsity: float = 0.0,
        *,
        keys: Keys | None = None,
        on_epoch: Callable[[], None] = lambda: None,
    ) -> tuple[State, list[Metrics]]:
        """Trains from a start until an epoch, with a new optimizer if it has none.

        The leading axis may be longer than the seeds, if there are ``keys`` for it.
        """
        keys = keys or self.keys
        step = jnp.int32(start.first * self.steps_an_epoch)
        state = self._begin(
            start.recipe,
            start.params,
            start.stats,
            start.mask,
            keys.masks,
            step,
            start.opt_state,
        )
        history = []
        for epoch in range(start.first, until):
            state, metrics = self._epoch(
                start.recipe,
                state,
                _fold_in(keys.training, epoch),
                jnp.float32(sparsity),
                self.dataset,
            )
            history.append(jax.device_get(metrics))
            on_epoch()
        return state, history

    def measure(self, metrics: Metrics, state: State, mask: Any) -> Metrics:
        """The metrics with the accuracies and the sparsity of other networks."""
        found = self._evaluate(state.params, state.stats, self.dataset)
        sparsity = jax.vmap(jp.sparsity)(mask, state.params)
        return Metrics(metrics.loss, *jax.device_get((*found, sparsity)))

    # The compiled programs, one for each recipe.

    def _over_seeds(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """One seed after the other, or all at once."""
        if self.config.over_seeds == "vmap":
            return jax.vmap(f)
        return lambda *args: jax.lax.map(lambda xs: f(*xs), args)

    @functools.partial(jax.jit, static_argnames=("self", "recipe"))
    def _begin(
        self,
        recipe: Recipe,
        params: Any,
        stats: Any,
        mask: Any,
        keys: jax.Array,
        step: jax.Array,
        opt_state: Any,
    ) -> State:
        """Masks the parameters; a new optimizer's schedule goes on from ``step``."""

        def one(
            params: Any, stats: Any, mask: Any, key: jax.Array, opt_state: Any
        ) -> State:
            if opt_state is None:
                opt_state = recipe.optimizer(self, self._tx, 0.0, key).init(params)
                opt_state = optax.tree.set(opt_state, count=step)
            opt_state = jp.set_mask(opt_state, mask)
            # Copies, as the state will be donated.
            rest = jax.tree.map(jnp.copy, (stats, opt_state))
            return State(jp.apply_mask(params, mask), *rest)

        return self._over_seeds(one)(params, stats, mask, keys, opt_state)

    @functools.partial(
        jax.jit, static_argnames=("self", "recipe"), donate_argnames="state"
    )
    def _epoch(
        self,
        recipe: Recipe,
        state: State,
        keys: jax.Array,
        sparsity: jax.Array,
        dataset: Dataset,
    ) -> tuple[State, Metrics]:
        """One epoch of every network."""
        config, steps = self.config, self.steps_an_epoch
        tx = recipe.optimizer(self, self._tx, sparsity, self._unused)

        def step(state: State, given: tuple[jax.Array, jax.Array]) -> Any:
            key, index = given
            loss, stats, grads = gradients(
                self.network,
                dataset,
                state.params,
                state.stats,
                jax.tree.map(lambda x: x[index], dataset.train),
                key,
                augmented=config.data.augment,
                sparse=lambda loss: recipe.sparse(loss, sparsity, key),
            )
            return update(tx, state, stats, grads), loss

        def order(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            shuffle_key, step_key = jax.random.split(key)
            images = jax.random.permutation(shuffle_key, len(dataset.train.labels))
            images = images[: steps * config.batch_size].reshape(steps, -1)
            return jax.random.split(step_key, steps), images

        def one(
            state: State, key: jax.Array, batches: tuple[jax.Array, jax.Array]
        ) -> tuple[State, Metrics]:
            state, losses = jax.lax.scan(step, state, batches)
            mask = recipe.mask(state.params, state.opt_state, sparsity, key)
            params = jp.apply_mask(state.params, mask)
            return state, Metrics(
                losses.mean(),
                *self._accuracies(params, state.stats, dataset),
                jp.sparsity(mask, state.params),
            )

        # One after the other: under vmap a key may draw what it does not alone.
        return self._over_seeds(one)(state, keys, jax.lax.map(order, keys))

    @functools.partial(jax.jit, static_argnames=("self", "recipe"))
    def mask(self, recipe: Recipe, state: State, keys: jax.Array, sparsity: Any) -> Any:
        """The masks that the networks run with."""

        def one(state: State, key: jax.Array) -> Any:
            return recipe.mask(state.params, state.opt_state, sparsity, key)

        return jax.vmap(one)(state, keys)

    @functools.partial(jax.jit, static_argnames="self")
    def _evaluate(self, params: Any, stats: Any, dataset: Dataset) -> Any:
        """The accuracies of all networks."""
        one = functools.partial(self._accuracies, dataset=dataset)
        return self._over_seeds(one)(params, stats)

    def _accuracies(
        self, params: Any, stats: Any, dataset: Dataset
    ) -> tuple[jax.Array, jax.Array]:
        """The accuracies of one network on the validation and the test images."""
        held_out = (dataset.validation, dataset.test)
        images, labels = jax.tree.map(lambda *x: jnp.concatenate(x), *held_out)

        def predict(image: jax.Array) -> jax.Array:
            images = dataset.standardize(image[None])
            logits = evaluate(self.network, params, stats, images)
            return logits[0].argmax()

        right = jax.lax.map(predict, images, batch_size=1000) == labels
        size = len(dataset.validation.labels)
        return right[:size].mean(), right[size:].mean()


def _trained(
    start: Start, state: State, history: Sequence[Metrics], seconds: float
) -> Start:
    """The start some epochs later."""
    return start._replace(
        params=state.params,
        stats=state.stats,
        opt_state=state.opt_state,
        first=start.first + len(history),
        history=(*start.history, *history),
        pruning_seconds=start.pruning_seconds + seconds,
    )


_fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
