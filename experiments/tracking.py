"""Training that tracks the contribution of every weight, for the gradient flow."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.config import Rounds
from experiments.data import Dataset, Split
from experiments.models import network
from experiments.training import State, cross_entropy, evaluate, gradients, update


class Tracked(NamedTuple):
    r"""The state of training.

    The contribution of a weight to the fall of the loss so far is, to first order,
    :math:`\sum_t \eta_t g_i(t)^2`.
    """

    state: State
    contribution: Any
    tracked: Any  # The moving average of θ² |g| over the minibatches.


class Evaluated(NamedTuple):
    """A network's outputs on images."""

    loss: float
    accuracy: float  # In [0, 1].
    logits: np.ndarray


class Trainer:
    """The functions of one network on one data set; each compiles once."""

    def __init__(self, config: Rounds, dataset: Dataset):
        self.config, self.dataset = config, dataset
        self.network = network(config.model, dataset.image_shape, dataset.classes)
        self._logits = jax.jit(functools.partial(evaluate, self.network))
        self._scored = self._scored_loss  # One object: programs are kept by function.

    def _optimizer(self, rate: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.config.weight_decay),
            optax.sgd(rate, self.config.momentum),
            jp.keep_sparse(),
        )

    @functools.partial(jax.jit, static_argnames="self")
    def begin(self, params: Any, stats: Any) -> Tracked:
        """The state of a dense network."""
        zeros = jax.tree.map(jnp.zeros_like, params)
        state = State(params, stats, self._optimizer(0.0).init(params))
        return jax.tree.map(jnp.copy, Tracked(state, zeros, zeros))

    @functools.partial(jax.jit, static_argnames="self")
    def restart(self, given: Tracked, mask: Any) -> Tracked:
        """Prunes, and makes a new optimizer."""
        params, stats, _ = given.state
        opt_state = jp.set_mask(self._optimizer(0.0).init(params), mask)
        pruned = State(jp.apply_mask(params, mask), stats, opt_state)
        return jax.tree.map(jnp.copy, given._replace(state=pruned))

    @functools.partial(jax.jit, static_argnames="self", donate_argnames="given")
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
            state,
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
        """Trains for an epoch and returns the mean loss too. Donates the state."""
        config, train = self.config, self.dataset.train
        drops = sum(number >= share * config.epochs for share in (0.5, 0.75))
        rate = jnp.float32(config.learning_rate * 0.1**drops)
        order_key, step_key = jax.random.split(key)
        order = np.asarray(jax.random.permutation(order_key, len(train.labels)))
        steps = len(order) // config.batch_size
        losses = []
        for index in order[: steps * config.batch_size].reshape(steps, -1):
            step_key, key = jax.random.split(step_key)
            state, loss = self._step(state, rate, key, train, jnp.asarray(index))
            losses.append(loss)
        return state, float(jnp.stack(losses).mean())

    def evaluate(self, given: Tracked, split: Split) -> Evaluated:
        """Runs the network in eval mode."""
        params, stats, _ = given.state
        logits = jnp.concatenate(
            [self._logits(params, stats, part.images) for part in self._batches(split)]
        )
        loss = cross_entropy(logits, split.labels, self.config.temperature)
        accuracy = (logits.argmax(-1) == split.labels).mean()
        return Evaluated(float(loss), float(accuracy), np.asarray(logits))

    def flow(self, given: Tracked, split: Split, temperature: float) -> jp.Flow:
        """The gradient flow of order 2, in eval mode."""
        params, stats, _ = given.state
        heat = jnp.float32(temperature)
        batches = [(part, stats, heat) for part in self._batches(split)]
        return jp.mean_flow(self._scored, params, batches)

    def _scored_loss(self, params: Any, batch: tuple[Split, Any, Any]) -> jax.Array:
        split, stats, temperature = batch
        logits = evaluate(self.network, params, stats, split.images)
        return cross_entropy(logits, split.labels, temperature)

    def _batches(self, split: Split, size: int = 250) -> list[Split]:
        """Standardized batches; the last may be smaller."""
        starts = range(0, len(split.labels), size)
        parts = [jax.tree.map(lambda x, i=i: x[i : i + size], split) for i in starts]
        return [Split(self.dataset.standardize(x), labels) for x, labels in parts]
