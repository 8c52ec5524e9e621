"""What is compiled: abstract shapes first, then shardings, then arrays."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import jaxprune as jp
from experiments.config import Scaled
from experiments.data import Dataset, Split, augment
from experiments.models import Network
from experiments.pruners import PRUNERS
from experiments.scale import _mesh
from experiments.train import optimizer_of


class State(NamedTuple):
    """All that training changes, the mask in the optimizer's state.

    Attributes:
      step: optimiser steps so far, which is also the position in the data.
      key: the root of the random keys.
      params: the parameters, float32.
      stats: the running statistics.
      opt_state: the optimizer's.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    stats: Any
    opt_state: Any


class Programs(NamedTuple):
    """Compiled functions; states are donated where they are replaced.

    Attributes:
      shapes: of the state, with the shardings, no arrays.
      init: ``init(key) -> state``, dense.
      prune: ``prune(state, batch) -> state`` with the method's mask and a new
        optimizer; None if it prunes in training alone.
      step: ``step(state, batch) -> (state, loss)``.
      right: ``right(state, batch) -> count`` of the images that are recognised.
      mask: ``mask(state)``, of the network as it is run.
      sparsity: ``sparsity(state)``, of the prunable weights, reached.
      warmup: dense epochs before ``prune``.
    """

    shapes: State
    init: Callable[[jax.Array], State]
    prune: Callable[[State, Split], State] | None
    step: Callable[[State, Split], tuple[State, jax.Array]]
    right: Callable[[State, Split], jax.Array]
    mask: Callable[[State], Any]
    sparsity: Callable[[State], jax.Array]
    warmup: int


def programs(
    config: Scaled, network: Network, dataset: Dataset, mesh: Mesh, steps: int
) -> Programs:
    """Builds the functions for ``steps`` steps an epoch; each compiles once."""
    network = _computed_in(network, jnp.dtype(config.parallel.compute))
    made = PRUNERS.get(config.method, PRUNERS["dense"])
    pruner = made(config.pruning, network, steps * config.epochs)
    recipe, plain = pruner.recipe, optimizer_of(config, steps)
    copied = _mesh.copied(mesh)

    def optimizer(key: jax.Array) -> optax.GradientTransformationExtraArgs:
        sparsity = jnp.float32(config.sparsity)
        return recipe.wrap(plain, sparsity, jax.random.fold_in(key, _OPTIMIZER))

    def build(key: jax.Array) -> State:
        params, stats = network.init(jax.random.fold_in(key, _WEIGHTS))
        opt_state = optimizer(key).init(params)
        return State(jnp.zeros([], jnp.int32), key, params, stats, opt_state)

    key = jax.eval_shape(jax.random.key, 0)
    shapes = jax.eval_shape(build, key)
    shardings = jax.tree.map(functools.partial(_mesh.split, mesh), shapes)
    shapes = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        shardings,
    )

    def prune(state: State, batch: Split) -> State:
        key = jax.random.fold_in(state.key, _MASK)
        params, found = chosen(key, state, batch)
        opt_state = optimizer(state.key).init(params)
        opt_state = optax.tree.set(opt_state, count=state.step)
        return state._replace(
            params=jp.apply_mask(params, found), opt_state=jp.set_mask(opt_state, found)
        )

    def chosen(key: jax.Array, state: State, batch: Split) -> tuple[Any, Any]:
        """The parameters, drawn anew or as they are, and their mask."""
        if pruner.draw is not None:
            return pruner.draw(key, state.params, config.sparsity)
        assert pruner.find is not None
        # As many images as there are of each class: devices need not divide them.
        cut = functools.partial(
            jax.lax.with_sharding_constraint, shardings=_mesh.spread(mesh, 0)
        )
        return state.params, pruner.find(
            key,
            state.params,
            state.stats,
            jax.tree.map(cut, Split(dataset.standardise(batch.images), batch.labels)),
            config.sparsity,
        )

    def loss_fn(
        params: Any, stats: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Any]:
        logits, stats = network.apply(params, stats, images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), stats

    def step(state: State, batch: Split) -> tuple[State, jax.Array]:
        root = jax.random.fold_in(state.key, _TRAINING)
        keys = jax.random.split(jax.random.fold_in(root, state.step), len(batch.labels))
        run = loss_fn
        if recipe.forward is not None:  # One mask for all microbatches.
            sparsity = jnp.float32(config.sparsity)
            run = recipe.forward.sparse(loss_fn, sparsity, keys[0])

        def part(
            carry: tuple[Any, Any], given: tuple[jax.Array, Split]
        ) -> tuple[tuple[Any, Any], jax.Array]:
            (stats, total), (key, (images, labels)) = carry, given
            images = dataset.standardise(images)
            if config.data.augment:
                images = augment(key, images)
            (loss, stats), grads = jax.value_and_grad(run, has_aux=True)(
                state.params, stats, images, labels
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
        updates, opt_state = optimizer(state.key).update(
            grads, state.opt_state, state.params, grad=grads
        )
        params = optax.apply_updates(state.params, updates)
        after = State(state.step + 1, state.key, params, stats, opt_state)
        return after, losses.mean()

    def mask(state: State) -> Any:
        if recipe.forward is not None:
            key = jax.random.fold_in(state.key, _MASK)
            sparsity = jnp.float32(config.sparsity)
            return recipe.forward.mask(state.params, sparsity, key)
        return jp.get_mask(state.opt_state, state.params)

    def right(state: State, batch: Split) -> jax.Array:
        params = jp.apply_mask(state.params, mask(state))
        images = dataset.standardise(batch.images)
        logits, _ = network.apply(params, state.stats, images, train=False)
        return (logits.argmax(-1) == batch.labels).sum()

    def sparsity(state: State) -> jax.Array:
        return jp.sparsity(mask(state), state.params)

    return Programs(
        shapes=shapes,
        init=jax.jit(build, out_shardings=shardings),
        prune=None
        if pruner.find is None and pruner.draw is None
        else jax.jit(prune, out_shardings=shardings, donate_argnums=0),
        step=jax.jit(step, out_shardings=(shardings, copied), donate_argnums=0),
        right=jax.jit(right, out_shardings=copied),
        mask=jax.jit(mask, out_shardings=shardings.params),
        sparsity=jax.jit(sparsity, out_shardings=copied),
        warmup=pruner.warmup,
    )


def _computed_in(network: Network, dtype: Any) -> Network:
    """The network that computes in ``dtype``, on float32 parameters, to float32."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if x.dtype == jnp.float32 else x

    def apply(
        params: Any, stats: Any, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        given = jax.tree.map(cast, (params, images))
        logits, stats = network.apply(given[0], stats, given[1], train=train)
        return logits.astype(jnp.float32), stats

    return network if dtype == jnp.float32 else Network(network.init, apply)


_WEIGHTS, _OPTIMIZER, _MASK, _TRAINING = range(4)  # What the root key is folded with.
