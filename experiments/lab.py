"""The networks of a comparison: `S` seeds, drawn, trained and pruned together.

One compiled epoch serves all masks, sparsities and seeds: everything that differs is an
argument with a leading axis of seeds, including the mask in the optimizer state.
"""

import copy
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
    """Measured after an epoch, ``[S]`` each."""

    loss: jax.Array  # The mean training loss.
    validation: jax.Array  # Accuracy in [0, 1].
    test: jax.Array
    sparsity: jax.Array


class Keys(NamedTuple):
    """The random keys of every seed."""

    params: jax.Array
    batches: jax.Array
    masks: jax.Array
    training: jax.Array


class Lab:
    """Shared by all rows; a `methods.Setup`. Trees have a leading axis of seeds."""

    def __init__(self, config: Config, dataset: Dataset):
        """Draws the networks and the scoring batches; compiles no training yet."""
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

    def init(self, keys: jax.Array) -> tuple[Any, Any]:
        """Draws parameters and their statistics."""
        return jax.jit(lambda keys: jax.lax.map(self.network.init, keys))(keys)

    def _scoring_batch(self, key: jax.Array) -> Split:
        batch = balanced(self.dataset.train, self.options.examples_per_class, key)
        return Split(self.dataset.standardize(batch.images), batch.labels)

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Makes something on the first call and keeps it."""
        if name not in self._once:
            self._once[name] = make()
        return self._once[name]

    def inverted(self) -> "Lab":
        """The same lab, except that the weights that score lowest stay."""
        lab = copy.copy(self)
        lab._invert = True
        return lab

    def compile(self) -> None:
        """Compiles an epoch before times are taken."""
        self.once("compiled", lambda: self.train(self.dense(0), 1))

    def dense(self, epochs: int) -> Start:
        """Trains dense networks, once for each number of epochs."""
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

        All seeds stop after the same epoch, in the first half of training. A trigger is
        updated with ``view(params)`` of its network.
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
        """Chooses and times the masks of all seeds, one network at a time."""
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
        """Trains until an epoch; a start without an optimizer gets a new one.

        With ``keys``, the leading axis may be longer than the number of seeds.
        """
        keys = keys or self.keys
        recipe, step = start.recipe, jnp.int32(start.first * self.steps_an_epoch)
        given = start.params, start.stats, start.mask, keys.masks, start.opt_state
        state, history = self._begin(recipe, step, *given), []
        for epoch in range(start.first, until):
            epoch_keys = jax.vmap(jax.random.fold_in, (0, None))(keys.training, epoch)
            state, metrics = self._epoch(
                recipe, state, epoch_keys, jnp.float32(sparsity), self.dataset
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
    def _begin(self, recipe: Recipe, step: jax.Array, *given: Any) -> State:
        """Masks the parameters; a new optimizer's schedule continues from ``step``."""

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

        return self._over_seeds(one)(*given)

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
        """Trains every network for an epoch."""
        config, steps = self.config, self.steps_an_epoch
        # The state has the key: after init, the optimizer does not read this one.
        unused = jax.random.key(0, impl="rbg")
        tx = recipe.optimizer(self, self._tx, sparsity, unused)

        def step(state: State, given: tuple[jax.Array, jax.Array]) -> Any:
            key, index = given
            loss, stats, grads = gradients(
                self.network,
                dataset,
                state,
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
            accuracies = self._accuracies(params, state.stats, dataset)
            reached = jp.sparsity(mask, state.params)
            return state, Metrics(losses.mean(), *accuracies, reached)

        # One after the other: under vmap a key may draw other numbers than alone.
        return self._over_seeds(one)(state, keys, jax.lax.map(order, keys))

    @functools.partial(jax.jit, static_argnames=("self", "recipe"))
    def mask(self, recipe: Recipe, state: State, keys: jax.Array, sparsity: Any) -> Any:
        """The masks that the networks run with."""

        def one(state: State, key: jax.Array) -> Any:
            return recipe.mask(state.params, state.opt_state, sparsity, key)

        return jax.vmap(one)(state, keys)

    @functools.partial(jax.jit, static_argnames="self")
    def _evaluate(self, params: Any, stats: Any, dataset: Dataset) -> Any:
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
        **state._asdict(),
        first=start.first + len(history),
        history=(*start.history, *history),
        pruning_seconds=start.pruning_seconds + seconds,
    )
