"""The methods compared: each one finds a mask before training, or as it goes.

All scores are taken at initialisation with BatchNorm in eval mode, so with the running
statistics it starts from (mean 0, variance 1): in training mode a filter's first-order
scores would cancel.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.config import Pruning
from experiments.data import Split
from experiments.models import Network


class Pruner(NamedTuple):
    """A method.

    Attributes:
      find: ``find(key, params, stats, batch, sparsity) -> mask`` for one network before
        training, ``batch`` a standardised ``Split``; None to start dense.
      link: ``link(sparsity) -> transformation``, the last of the optax chain. The
        sparsity may be traced, so that one compiled program trains at all of them.
    """

    find: Callable[..., Any] | None
    link: Callable[[Any], optax.GradientTransformation]


class Frozen(NamedTuple):
    """What a score is built from: a network in eval mode, with fixed statistics.

    Attributes:
      key: a random key.
      logits: ``logits(params, images, *_)``.
      loss: ``loss(params, images, labels, *, temperature=1.0)``, the mean cross-entropy
        of ``logits / temperature``.
      config: the options.
    """

    key: jax.Array
    logits: Callable[..., jax.Array]
    loss: Callable[..., jax.Array]
    config: Pruning


Score = Callable[..., Any]
Factory = Callable[[Pruning, Network, int], Pruner]


def one_shot(score: Callable[[Frozen], Score]) -> Factory:
    """Scores once, and keeps the best of all layers."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del steps

        @jax.jit
        def scores(key: jax.Array, params: Any, stats: Any, batch: Split) -> Any:
            return score(freeze(config, network, stats, key))(params, *batch)

        def find(
            key: jax.Array, params: Any, stats: Any, batch: Split, sparsity: float
        ) -> Any:
            return jp.global_mask(scores(key, params, stats, batch), sparsity)

        return Pruner(find, _keep)

    return factory


def iterative(score: Callable[[Frozen], Score]) -> Factory:
    """Scores and prunes in rounds; the score sees one image, which gives the shape."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del steps

        @functools.partial(jax.jit, static_argnames="sparsity")
        def find(
            key: jax.Array, params: Any, stats: Any, batch: Split, sparsity: float
        ) -> Any:
            return jp.iterative_mask(
                score(freeze(config, network, stats, key)),
                params,
                batch.images[:1],
                sparsity=sparsity,
                rounds=config.rounds,
            )

        return Pruner(find, _keep)

    return factory


def gradual(config: Pruning, network: Network, steps: int) -> Pruner:
    """Removes the smallest weights while training, along Zhu & Gupta's cubic."""
    del network
    ramp = max(1, round(config.until * steps))

    def link(sparsity: Any) -> optax.GradientTransformation:
        schedule = optax.polynomial_schedule(
            0.0, sparsity, power=3, transition_steps=ramp
        )
        return jp.gradual(schedule, every=config.every)

    return Pruner(None, link)


def dense(config: Pruning, network: Network, steps: int) -> Pruner:
    """Removes nothing, in the program of the one-shot methods."""
    del config, network, steps
    return Pruner(None, _keep)


def freeze(config: Pruning, network: Network, stats: Any, key: jax.Array) -> Frozen:
    """Fixes the running statistics of a network."""

    def logits(params: Any, images: jax.Array, *_: Any) -> jax.Array:
        return network.apply(params, stats, images, train=False)[0]

    def loss(
        params: Any, images: jax.Array, labels: jax.Array, *, temperature: float = 1.0
    ) -> jax.Array:
        tempered = logits(params, images) / temperature
        return optax.softmax_cross_entropy_with_integer_labels(tempered, labels).mean()

    return Frozen(key, logits, loss, config)


def _keep(sparsity: Any) -> optax.GradientTransformation:
    del sparsity
    return jp.keep_sparse()


def _grasp(frozen: Frozen) -> Score:
    temperature = frozen.config.grasp_temperature
    return jp.grasp(functools.partial(frozen.loss, temperature=temperature))


PRUNERS: dict[str, Factory] = {
    "dense": dense,
    "random": one_shot(lambda frozen: jp.random(frozen.key)),
    "magnitude": one_shot(lambda frozen: jp.magnitude),
    "snip": one_shot(lambda frozen: jp.snip(frozen.loss)),
    "grasp": one_shot(_grasp),
    "synflow": iterative(lambda frozen: jp.synflow(frozen.logits, dtype=jnp.float64)),
    "biased_loss": one_shot(lambda frozen: jp.biased_loss(frozen.loss)),
    "gradient_preservation": one_shot(
        lambda frozen: jp.gradient_preservation(frozen.loss)
    ),
    "gradual": gradual,
}
