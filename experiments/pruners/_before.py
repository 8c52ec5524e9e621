"""Methods that find their mask before training.

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
from experiments.pruners._types import KEEP, Factory, Pruner, Recipe, Settling


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

        return Pruner(find, KEEP, config.warmup if trained else 0)

    return factory


def compiled(
    choose: Callable[[Frozen, Any, Split, Any, bool], Any], *, trained: bool = False
) -> Factory:
    """Lets ``choose(frozen, params, batch, sparsity, inverted)`` make the mask."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del steps

        @functools.partial(jax.jit, static_argnames="inverted")
        def find(
            key: jax.Array,
            params: Any,
            stats: Any,
            batch: Split,
            sparsity: float,
            inverted: bool = False,
        ) -> Any:
            frozen = freeze(config, network, stats, key)
            return choose(frozen, params, batch, sparsity, inverted)

        return Pruner(find, KEEP, config.warmup if trained else 0)

    return factory


def iterative(
    score: Callable[[Frozen], Score], *, trained: bool = False, whole: bool = False
) -> Factory:
    """Scores and prunes in rounds; unless ``whole``, the score sees one image only."""

    def choose(
        frozen: Frozen, params: Any, batch: Split, sparsity: Any, inverted: bool
    ) -> Any:
        plain = score(frozen)
        return jp.iterative_mask(
            (lambda *args: _invert(plain(*args))) if inverted else plain,
            params,
            *(batch if whole else (batch.images[:1],)),
            sparsity=sparsity,
            rounds=frozen.config.rounds,
        )

    return compiled(choose, trained=trained)


def drive(**options: Any) -> Factory:
    """DRIVE: dense epochs, then rounds of its score, with the options of `jp.drive`."""
    return iterative(
        lambda frozen: jp.drive(frozen.loss, **options), trained=True, whole=True
    )


def force(
    frozen: Frozen, params: Any, batch: Split, sparsity: Any, inverted: bool
) -> Any:
    """SNIP in rounds in which removed weights may come back."""

    def measure(flow: jp.Flow) -> Any:
        found = jp.measures.loss_preservation(flow)
        return _invert(found) if inverted else found

    return jp.force_mask(
        frozen.loss,
        params,
        *batch,
        sparsity=sparsity,
        rounds=frozen.config.rounds,
        measure=measure,
    )


def dense(config: Pruning, network: Network, steps: int) -> Pruner:
    """Removes nothing, in the program of the one-shot methods."""
    del config, network, steps
    return Pruner(None, KEEP)


def blocks(
    frozen: Frozen, params: Any, batch: Split, sparsity: Any, inverted: bool
) -> Any:
    """Removes the smallest blocks of 4x4 weights of the layers that they divide."""
    del frozen, batch
    scores = jp.magnitude(params)
    return jp.block_mask(
        _invert(scores) if inverted else scores,
        sparsity,
        (4, 4),
        prunable=jp.divisible_by((4, 4), axis=(-2, -1)),
    )


def earlycrop(config: Pruning, network: Network, steps: int) -> Pruner:
    """Gradient preservation, once the weights stay where they are."""

    def trigger(sparsity: float) -> Settling:
        return Settling(jp.earlycrop_trigger(sparsity), lambda params: params, 1)

    score = one_shot(lambda frozen: jp.gradient_preservation(frozen.loss))
    return score(config, network, steps)._replace(trigger=trigger)


def epi(config: Pruning, network: Network, steps: int) -> Pruner:
    """Magnitude, once it leaves every layer the same from epoch to epoch.

    It looks back on 2 epochs and not on 5, as training here is short.
    """

    def trigger(sparsity: float) -> Settling:
        def trial(params: Any) -> Any:
            return jp.global_mask(jp.magnitude(params), sparsity)

        return Settling(jp.epi_trigger(0.983, window=2), trial, 0)

    score = one_shot(lambda frozen: jp.magnitude)
    return score(config, network, steps)._replace(trigger=trigger)


def static(config: Pruning, network: Network, steps: int) -> Pruner:
    """Keeps a random mask."""
    del config, network, steps
    return Pruner(erk_mask, KEEP)


def eoi(config: Pruning, network: Network, steps: int) -> Pruner:
    """Sparse weights that are orthogonal, as dense in each layer as ERK says."""
    del config, network, steps

    def draw(key: jax.Array, params: Any, sparsity: float) -> tuple[Any, Any]:
        return jp.exact_orthogonal_init(
            key, params, jp.erk(params, sparsity), gain=2**0.5
        )

    return Pruner(None, KEEP, draw=draw)


def sparse_mup(*, init: bool = True, learning_rate: bool = True) -> Factory:
    """A random mask, with weights and learning rates that make up for its density.

    All but the first and the last layer are hidden, and as sparse as one another; the
    other two are dense, so less is removed than asked for. The width is the one that
    the learning rate was chosen for. With SGD as with Adam a step should be larger by
    what the density is smaller: a unit sums over that many fewer weights.
    """

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del config, steps
        shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
        if not any(jax.tree.leaves(_HIDDEN(shapes))):
            raise ValueError(
                "sparse_mup prunes the layers between the first and the last, and this "
                "network has none: give --model.widths one more."
            )

        def draw(key: jax.Array, params: Any, sparsity: float) -> tuple[Any, Any]:
            if init:
                scale = jp.sparse_mup(params, sparsity, hidden=_HIDDEN).init
                params = jax.tree.map(jnp.multiply, params, scale)
            noise = jp.random(key)(params)
            return params, jp.layerwise_mask(noise, sparsity, prunable=_HIDDEN)

        def wrap(tx: optax.GradientTransformation, sparsity: Any, key: Any) -> Any:
            del key
            mup = jp.sparse_mup(shapes, sparsity, hidden=_HIDDEN)
            rates = jp.scale_leaves(mup.learning_rate)
            link = rates if learning_rate else optax.identity()
            return optax.chain(tx, link, jp.keep_sparse())

        return Pruner(None, Recipe(wrap), draw=draw)

    return factory


_FIRST_OR_LAST = r"layers/0/|convs/0/|stages/0/0/|stem/|embed/|output/"
_HIDDEN = jp.by_path(rf"^(?!{_FIRST_OR_LAST}).*kernel")


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


def erk_mask(
    key: jax.Array,
    params: Any,
    stats: Any,
    batch: Split,
    sparsity: float,
    inverted: bool = False,
) -> Any:
    """A random mask, as dense in each layer as Erdős-Rényi-kernel says."""
    del stats, batch, inverted
    return jp.layerwise_mask(jp.random(key)(params), jp.erk(params, sparsity))


def synflow(config: Pruning, network: Network, steps: int) -> Pruner:
    """In double precision: its sums over paths overflow in deep networks."""
    pruner = iterative(lambda frozen: jp.synflow(frozen.logits, dtype=jnp.float64))(
        config, network, steps
    )

    def find(*args: Any, **options: Any) -> Any:
        assert pruner.find is not None
        with jax.enable_x64(True):  # Compiled in there, max pooling and all.
            return pruner.find(*args, **options)

    return pruner._replace(find=find)


def fisher(frozen: Frozen) -> Score:
    """Squares the gradients of ten parts of the batch, each with all classes."""

    def score(params: Any, *batch: Any) -> Any:
        parts = [tuple(x[i::10] for x in batch) for i in range(10)]
        parts = [part for part in parts if len(part[0])]
        flow = jp.mean_flow(lambda p, b: frozen.loss(p, *b), params, parts, order=1)
        return jp.measures.fisher(flow)

    return score


def prospr(frozen: Frozen) -> Score:
    """Trains on three quarters of the batch, a step each, and scores on the fourth."""

    def score(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        # The images lie class by class: every fourth is a quarter of each.
        parts = [(images[i::4], labels[i::4]) for i in range(4)]
        size = min(len(part) for _, part in parts)
        steps = jax.tree.map(lambda *x: jnp.stack([y[:size] for y in x]), *parts[:3])
        return jp.prospr(frozen.loss)(params, steps, *parts[3])

    return score


def grasp(frozen: Frozen) -> Score:
    temperature = frozen.config.grasp_temperature
    return jp.grasp(functools.partial(frozen.loss, temperature=temperature))
