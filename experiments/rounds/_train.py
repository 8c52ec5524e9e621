"""One epoch, one look, one score: what the pipeline compiles, once for all its runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.config import Rounds
from experiments.data import Dataset, Split, augment
from experiments.models import Network


class State(NamedTuple):
    r"""What a step changes; the trees but ``stats`` are like the parameters.

    Attributes:
      params: the weights, pruned ones 0.
      stats: BatchNorm's running statistics.
      opt_state: the optimizer's, with the mask.
      contribution: :math:`\sum_t \eta_t g_i(t)^2`, to first order what a weight has
        contributed to the fall of the loss so far.
      tracked: the moving average of :math:`\theta^2 |g|` over the minibatches.
    """

    params: Any
    stats: Any
    opt_state: Any
    contribution: Any
    tracked: Any


class Outcome(NamedTuple):
    """What a network makes of images: loss, accuracy in [0, 1], logits ``[N, C]``."""

    loss: float
    accuracy: float
    logits: np.ndarray


class Trainer(NamedTuple):
    """The functions of one network on one data set.

    Attributes:
      begin: ``begin(params, stats) -> state``, dense.
      restart: ``restart(state, mask) -> state``, pruned, with a new optimizer.
      epoch: ``epoch(state, key, number) -> (state, mean loss)``; consumes the state.
      look: ``look(state, split) -> Outcome``, in eval mode.
      flow: ``flow(state, split, temperature) -> jp.Flow``, order 2, in eval mode.
    """

    begin: Callable[[Any, Any], State]
    restart: Callable[[State, Any], State]
    epoch: Callable[[State, jax.Array, int], tuple[State, float]]
    look: Callable[[State, Split], Outcome]
    flow: Callable[[State, Split, float], jp.Flow]


def trainer(config: Rounds, network: Network, dataset: Dataset) -> Trainer:
    """Builds the functions; each compiles once."""

    def optimizer(rate: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(rate, config.momentum),
            jp.keep_sparse(),
        )

    def mean_loss(
        params: Any, stats: Any, batch: Split, temperature: Any, *, train: bool
    ) -> tuple[jax.Array, Any]:
        logits, stats = network.apply(params, stats, batch.images, train=train)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits / temperature, batch.labels
        )
        return losses.mean(), stats

    def scored_loss(params: Any, batch: tuple[Split, Any, Any]) -> jax.Array:
        split, stats, temperature = batch
        return mean_loss(params, stats, split, temperature, train=False)[0]

    @jax.jit(donate_argnums=0)
    def step(
        state: State, rate: jax.Array, key: jax.Array, train: Split, index: jax.Array
    ) -> tuple[State, jax.Array]:
        images = dataset.standardise(train.images[index])
        if config.data.augment:
            images = augment(key, images)
        batch = Split(images, train.labels[index])
        (loss, stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            state.params, state.stats, batch, config.temperature, train=True
        )
        updates, opt_state = optimizer(rate).update(
            grads, state.opt_state, state.params
        )
        contribution = jax.tree.map(
            lambda c, g: c + rate * g**2, state.contribution, grads
        )
        new = config.tracked_weight
        tracked = jax.tree.map(
            lambda t, p, g: new * p**2 * jnp.abs(g) + (1 - new) * t,
            state.tracked,
            state.params,
            grads,
        )
        params = optax.apply_updates(state.params, updates)
        return State(params, stats, opt_state, contribution, tracked), loss

    @jax.jit
    def begin(params: Any, stats: Any) -> State:
        zeros = jax.tree.map(jnp.zeros_like, params)
        opt_state = optimizer(0.0).init(params)
        return jax.tree.map(jnp.copy, State(params, stats, opt_state, zeros, zeros))

    @jax.jit
    def restart(state: State, mask: Any) -> State:
        opt_state = jp.set_mask(optimizer(0.0).init(state.params), mask)
        params = jp.apply_mask(state.params, mask)
        pruned = state._replace(params=params, opt_state=opt_state)
        return jax.tree.map(jnp.copy, pruned)

    def epoch(state: State, key: jax.Array, number: int) -> tuple[State, float]:
        drops = sum(number >= share * config.epochs for share in (0.5, 0.75))
        rate = jnp.float32(config.learning_rate * 0.1**drops)
        order_key, step_key = jax.random.split(key)
        order = np.asarray(jax.random.permutation(order_key, len(dataset.train.labels)))
        steps = len(order) // config.batch_size
        losses = []
        for index in order[: steps * config.batch_size].reshape(steps, -1):
            step_key, key = jax.random.split(step_key)
            state, loss = step(state, rate, key, dataset.train, jnp.asarray(index))
            losses.append(loss)
        return state, float(jnp.stack(losses).mean())

    predict = jax.jit(lambda *args: network.apply(*args, train=False)[0])

    def look(state: State, split: Split) -> Outcome:
        logits = jnp.concatenate(
            [
                predict(state.params, state.stats, batch.images)
                for batch in batches(dataset, split)
            ]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits / config.temperature, split.labels
        )
        accuracy = (logits.argmax(-1) == split.labels).mean()
        return Outcome(float(losses.mean()), float(accuracy), np.asarray(logits))

    def flow(state: State, split: Split, temperature: float) -> jp.Flow:
        scored = [
            (batch, state.stats, jnp.float32(temperature))
            for batch in batches(dataset, split)
        ]
        return jp.mean_flow(scored_loss, state.params, scored)

    return Trainer(begin, restart, epoch, look, flow)


def batches(dataset: Dataset, split: Split, size: int = 250) -> Sequence[Split]:
    """Cuts a split into standardised batches; the last may be smaller."""
    cuts = range(0, len(split.labels), size)
    return [
        Split(
            dataset.standardise(split.images[i : i + size]), split.labels[i : i + size]
        )
        for i in cuts
    ]
