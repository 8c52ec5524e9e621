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
      find: ``find(key, params, stats, batch, sparsity, inverted=False) -> mask`` for
        one network, ``batch`` a standardised ``Split``, ``inverted`` to keep the worst;
        None to start dense.
      wrap: ``wrap(optimizer, sparsity, key) -> optimizer``, which prunes. The sparsity
        may be traced, so that one compiled program trains at all of them.
      warmup: dense epochs before ``find``.
    """

    find: Callable[..., Any] | None
    wrap: Callable[..., optax.GradientTransformation]
    warmup: int = 0


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


def one_shot(score: Callable[[Frozen], Score], *, trained: bool = False) -> Factory:
    """Scores once, and keeps the best of all layers."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del steps

        @jax.jit
        def scores(key: jax.Array, params: Any, stats: Any, batch: Split) -> Any:
            return score(freeze(config, network, stats, key))(params, *batch)

        def find(
            key: jax.Array,
            params: Any,
            stats: Any,
            batch: Split,
            sparsity: float,
            inverted: bool = False,
        ) -> Any:
            found = scores(key, params, stats, batch)
            return jp.global_mask(_invert(found) if inverted else found, sparsity)

        return Pruner(find, keep, config.warmup if trained else 0)

    return factory


def iterative(
    score: Callable[[Frozen], Score], *, trained: bool = False, whole: bool = False
) -> Factory:
    """Scores and prunes in rounds; unless ``whole``, the score sees one image only."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del steps

        @functools.partial(jax.jit, static_argnames=("sparsity", "inverted"))
        def find(
            key: jax.Array,
            params: Any,
            stats: Any,
            batch: Split,
            sparsity: float,
            inverted: bool = False,
        ) -> Any:
            plain = score(freeze(config, network, stats, key))
            return jp.iterative_mask(
                (lambda *args: _invert(plain(*args))) if inverted else plain,
                params,
                *(batch if whole else (batch.images[:1],)),
                sparsity=sparsity,
                rounds=config.rounds,
            )

        return Pruner(find, keep, config.warmup if trained else 0)

    return factory


def drive(**options: Any) -> Factory:
    """DRIVE: dense epochs, then rounds of its score, with the options of `jp.drive`."""
    return iterative(
        lambda frozen: jp.drive(frozen.loss, **options), trained=True, whole=True
    )


def gradual(config: Pruning, network: Network, steps: int) -> Pruner:
    """Removes the smallest weights while training, along Zhu & Gupta's cubic."""
    del network
    every, (_, ramp) = config.every, _window(config, steps)
    return _linked(
        lambda sparsity, key: jp.gradual(_cubic(sparsity, 0, ramp), every=every)
    )


def k_starts(config: Pruning, network: Network, steps: int) -> Pruner:
    """Chooses the fittest of k random masks after some dense epochs."""
    del network
    select_at, _ = _window(config, steps)
    return _linked(
        lambda sparsity, key: jp.k_starts(key, config.k, sparsity, select_at=select_at)
    )


def dissipating(config: Pruning, network: Network, steps: int) -> Pruner:
    """Removes what stays near its start, along the cubic."""
    del network
    begin, end = _window(config, steps)
    return _linked(
        lambda sparsity, key: jp.dissipating(
            _cubic(sparsity, begin, end - begin), every=config.every, until=end
        )
    )


def k_starts_dissipating(config: Pruning, network: Network, steps: int) -> Pruner:
    """K-starts to half of the density's logarithm, then dissipating to the rest."""
    del network
    begin, end = _window(config, steps)

    def link(sparsity: Any, key: jax.Array) -> optax.GradientTransformation:
        first = 1 - jnp.sqrt(1 - sparsity)
        then = optax.schedules.join_schedules(
            [lambda _: 0.0, _cubic(sparsity, 0, end - begin, first)], [begin + 1]
        )
        return optax.chain(
            jp.k_starts(key, config.k, first, select_at=begin),
            jp.dissipating(then, every=config.every, until=end),
        )

    return _linked(link)


def static(config: Pruning, network: Network, steps: int) -> Pruner:
    """A random mask, as dense in each layer as Erdős-Rényi-kernel says."""
    del config, network, steps
    return Pruner(_erk_mask, keep)


def dynamic(transform: Callable[..., Any]) -> Factory:
    """Starts from the static mask, and moves it: ``transform(tx, key, options)``."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del network
        _, until = _window(config, steps)
        fraction = optax.cosine_decay_schedule(0.3, until)
        options = {"every": config.every, "until": until, "drop_fraction": fraction}

        def wrap(tx: optax.GradientTransformation, sparsity: Any, key: Any) -> Any:
            del sparsity
            return transform(tx, key, options)

        return Pruner(_erk_mask, wrap)

    return factory


def granet(config: Pruning, network: Network, steps: int) -> Pruner:
    """Gradual pruning that regrows on its way."""
    del network
    _, end = _window(config, steps)

    def wrap(tx: optax.GradientTransformation, sparsity: Any, key: Any) -> Any:
        del key
        return jp.granet(
            tx,
            _cubic(sparsity, 0, end),
            every=config.every,
            until=end,
            drop_fraction=optax.cosine_decay_schedule(0.5, end),
        )

    return Pruner(None, wrap)


def dense(config: Pruning, network: Network, steps: int) -> Pruner:
    """Removes nothing, in the program of the one-shot methods."""
    del config, network, steps
    return Pruner(None, keep)


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


def _invert(scores: Any) -> Any:
    return jax.tree.map(jnp.negative, scores)


def keep(
    tx: optax.GradientTransformation, sparsity: Any, key: jax.Array
) -> optax.GradientTransformation:
    """Keeps the mask that is in the state."""
    del sparsity, key
    return optax.chain(tx, jp.keep_sparse())


def _linked(link: Callable[[Any, jax.Array], Any]) -> Pruner:
    """Starts dense, with ``link(sparsity, key)`` the last of the chain."""

    def wrap(tx: optax.GradientTransformation, sparsity: Any, key: jax.Array) -> Any:
        return optax.chain(tx, link(sparsity, key))

    return Pruner(None, wrap)


def _window(config: Pruning, steps: int) -> tuple[int, int]:
    """The steps at which pruning in training begins, and has ended: due ones."""
    every = config.every
    begin = max(1, round(config.select_at * steps))
    end = max(every, round(config.until * steps) // every * every)
    return begin, max(end, begin + 2 * every)


def _cubic(sparsity: Any, begin: int, length: int, start: Any = 0.0) -> Any:
    """Zhu & Gupta's schedule, from ``start`` to ``sparsity``."""
    return optax.polynomial_schedule(
        start, sparsity, power=3, transition_steps=length, transition_begin=begin
    )


def _erk_mask(
    key: jax.Array,
    params: Any,
    stats: Any,
    batch: Split,
    sparsity: float,
    inverted: bool = False,
) -> Any:
    del stats, batch, inverted
    return jp.layerwise_mask(jp.random(key)(params), jp.erk(params, sparsity))


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
    "trained_magnitude": one_shot(lambda frozen: jp.magnitude, trained=True),
    "drive": drive(),
    "k_starts": k_starts,
    "dissipating": dissipating,
    "k_starts_dissipating": k_starts_dissipating,
    "static": static,
    "set": dynamic(
        lambda tx, key, options: jp.set_training(tx, None, key=key, **options)
    ),
    "rigl": dynamic(lambda tx, key, options: jp.rigl(tx, None, **options)),
    "granet": granet,
}

DRIVE_VARIANTS: dict[str, dict[str, Any]] = {
    "|θ|": {"weights": (1, 0, 0)},
    "|θg|": {"weights": (0, 1, 0)},
    "|g|": {"weights": (0, 0, 1)},
    "|θ| + |θg|": {"weights": (1, 1, 0)},
    "|θ| + |g|": {"weights": (1, 0, 1)},
    "|θg| + |g|": {"weights": (0, 1, 1)},
    "means": {"normalize": "mean"},
    "ranks": {"normalize": "rank"},
    "none": {"normalize": "none"},
    "product": {"combine": "product"},
}
