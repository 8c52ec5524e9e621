"""Training: one compiled epoch for every mask, sparsity and seed.

Everything a run needs is an argument with a leading axis of seeds, the mask in the
optimizer state included, so nothing is compiled again from one run to the next. `S`
denotes the number of seeds.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.config import Config, Scaled
from experiments.data import Dataset, augment
from experiments.models import Network
from experiments.pruners import Recipe


class State(NamedTuple):
    """What training changes; every leaf has shape ``[S, ...]``."""

    params: Any
    stats: Any
    opt_state: Any


class Metrics(NamedTuple):
    """After an epoch: mean training loss, accuracies in [0, 1], sparsity reached."""

    loss: jax.Array
    validation: jax.Array
    test: jax.Array
    sparsity: jax.Array


class Trainer(NamedTuple):
    """Compiled functions, once for each `Recipe`.

    Attributes:
      start: ``start(recipe, params, stats, mask, keys, step, opt_state=None)``, a
        state pruned by ``mask``, with a new optimizer whose schedule goes on from
        ``step``, or with the one given.
      epoch: ``epoch(recipe, state, keys, sparsity, dataset) -> (state, metrics)``; the
        state is donated.
      mask: ``mask(recipe, state, keys, sparsity)``, of the networks as they are run.
      accuracies: ``accuracies(params, stats, dataset) -> (validation, test)``.
    """

    start: Callable[..., State]
    epoch: Callable[..., tuple[State, Metrics]]
    mask: Callable[..., Any]
    accuracies: Callable[..., tuple[jax.Array, jax.Array]]


def optimizer_of(config: Config | Scaled, steps: int) -> optax.GradientTransformation:
    """Nesterov's SGD with weight decay and a schedule, at ``steps`` steps an epoch."""
    schedule = optax.cosine_decay_schedule(
        config.learning_rate, decay_steps=steps * config.epochs
    )
    if config.drops:
        schedule = optax.piecewise_constant_schedule(
            config.learning_rate, {steps * epoch: 0.1 for epoch in config.drops}
        )
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=jp.matrices),
        optax.sgd(schedule, config.momentum, nesterov=True),
    )


def trainer(config: Config, network: Network, steps: int) -> Trainer:
    """Builds the trainer for ``steps`` steps an epoch."""
    over_seeds = _OVER_SEEDS[config.over_seeds]
    plain = optimizer_of(config, steps)
    unused = jax.random.key(0, impl="rbg")  # After its start, the state has the key.

    def optimizer(
        recipe: Recipe, sparsity: Any, key: Any
    ) -> optax.GradientTransformationExtraArgs:
        return recipe.wrap(plain, sparsity, key)

    def loss_fn(
        params: Any, stats: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Any]:
        logits, stats = network.apply(params, stats, images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), stats

    def accuracies(
        params: Any, stats: Any, dataset: Dataset
    ) -> tuple[jax.Array, jax.Array]:
        def predict(image: jax.Array) -> jax.Array:
            x = dataset.standardise(image[None])
            logits, _ = network.apply(params, stats, x, train=False)
            return logits[0].argmax()

        held_out = (dataset.validation, dataset.test)
        images, labels = jax.tree.map(lambda *x: jnp.concatenate(x), *held_out)
        right = jax.lax.map(predict, images, batch_size=_EVAL_BATCH) == labels
        size = len(dataset.validation.labels)
        return right[:size].mean(), right[size:].mean()

    def start(
        recipe: Recipe,
        params: Any,
        stats: Any,
        mask: Any,
        keys: jax.Array,
        step: jax.Array,
        opt_state: Any = None,
    ) -> State:
        def one(
            params: Any, stats: Any, mask: Any, key: jax.Array, opt_state: Any
        ) -> State:
            if opt_state is None:
                opt_state = optimizer(recipe, 0.0, key).init(params)
                opt_state = optax.tree.set(opt_state, count=step)
            opt_state = jp.set_mask(opt_state, mask)
            # Copies, as the state will be donated.
            rest = jax.tree.map(jnp.copy, (stats, opt_state))
            return State(jp.apply_mask(params, mask), *rest)

        return over_seeds(one)(params, stats, mask, keys, opt_state)

    def mask_of(recipe: Recipe, state: State, key: Any, sparsity: Any) -> Any:
        if recipe.forward is not None:
            return recipe.forward.mask(state.params, sparsity, key)
        return jp.get_mask(state.opt_state, state.params)

    def epoch(
        recipe: Recipe,
        state: State,
        keys: jax.Array,
        sparsity: jax.Array,
        dataset: Dataset,
    ) -> tuple[State, Metrics]:
        def step(state: State, batch: tuple[jax.Array, jax.Array]) -> Any:
            key, index = batch
            run = loss_fn
            if recipe.forward is not None:
                run = recipe.forward.sparse(loss_fn, sparsity, key)
            images = dataset.standardise(dataset.train.images[index])
            if config.data.augment:
                images = augment(key, images)
            (loss, stats), grads = jax.value_and_grad(run, has_aux=True)(
                state.params, state.stats, images, dataset.train.labels[index]
            )
            tx = optimizer(recipe, sparsity, unused)
            # K-starts gathers gradients, and not what the optimizer makes of them.
            updates, opt_state = tx.update(
                grads, state.opt_state, state.params, grad=grads
            )
            params = optax.apply_updates(state.params, updates)
            return State(params, stats, opt_state), loss

        def plan(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            shuffle_key, step_key = jax.random.split(key)
            order = jax.random.permutation(shuffle_key, len(dataset.train.labels))
            order = order[: steps * config.batch_size].reshape(steps, -1)
            return jax.random.split(step_key, steps), order

        def one(
            state: State, key: jax.Array, batches: tuple[jax.Array, jax.Array]
        ) -> tuple[State, Metrics]:
            state, losses = jax.lax.scan(step, state, batches)
            mask = mask_of(recipe, state, key, sparsity)
            params = jp.apply_mask(state.params, mask)
            return state, Metrics(
                losses.mean(),
                *accuracies(params, state.stats, dataset),
                jp.sparsity(mask, state.params),
            )

        # One after the other: under vmap a key may draw what it does not alone.
        return over_seeds(one)(state, keys, jax.lax.map(plan, keys))

    def mask(recipe: Recipe, state: State, keys: jax.Array, sparsity: Any) -> Any:
        def one(state: State, key: jax.Array) -> Any:
            return mask_of(recipe, state, key, sparsity)

        return jax.vmap(one)(state, keys)

    return Trainer(
        jax.jit(start, static_argnames="recipe"),
        jax.jit(epoch, static_argnames="recipe", donate_argnames="state"),
        jax.jit(mask, static_argnames="recipe"),
        jax.jit(
            lambda params, stats, dataset: over_seeds(
                functools.partial(accuracies, dataset=dataset)
            )(params, stats)
        ),
    )


def _map(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: jax.lax.map(lambda xs: f(*xs), args)


_OVER_SEEDS = {"map": _map, "vmap": jax.vmap}
_EVAL_BATCH = 1000
