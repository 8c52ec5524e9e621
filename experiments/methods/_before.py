"""Methods that prune at initialization, after a warm-up, or when a trigger fires.

BatchNorm runs in eval mode while weights are scored. At initialization it uses its
first running statistics (mean 0, variance 1): in training mode, the first-order scores
of a filter's weights would cancel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.methods._start import Choose, Recipe, Score, Setup, Start, StartFn

if TYPE_CHECKING:
    from experiments.lab import Lab
    from experiments.training import View


def chosen(choose: Choose, *, warm_up: bool = False) -> StartFn:
    """Chooses the masks at initialization, or after dense epochs."""

    def start(setup: Setup, sparsity: float) -> Start:
        epochs = setup.options.warmup if warm_up else 0
        return setup.prune(setup.dense(epochs), choose, sparsity)

    return start


def masked(mask: Callable[[View, Any, Any], Any]) -> Choose:
    """Compiles ``mask(view, params, sparsity)``; the weights do not change."""
    compiled = jax.jit(mask)
    return lambda view, params, sparsity: (params, compiled(view, params, sparsity))


def ranked(score: Callable[[View], Score]) -> Choose:
    """Keeps the best of all layers by ``score(view)(params, *batch)``."""
    scores = jax.jit(lambda view, params: view.rank(score(view)(params, *view.batch)))

    def choose(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
        return params, jp.global_mask(scores(view, params), sparsity)

    return choose


def in_rounds(score: Callable[[View], Score], *, images: int | None = None) -> Choose:
    """Scores and prunes in rounds; with ``images``, only the first ones are passed."""

    def mask(view: View, params: Any, sparsity: Any) -> Any:
        plain = score(view)
        return jp.iterative_mask(
            lambda *args: view.rank(plain(*args)),
            params,
            *(view.batch if images is None else (view.batch.images[:images],)),
            sparsity=sparsity,
            rounds=view.options.rounds,
        )

    return masked(mask)


random = chosen(ranked(lambda view: jp.random(view.key)))
_by_magnitude = ranked(lambda view: lambda params, *_: jp.magnitude(params))
magnitude = chosen(_by_magnitude)
trained_magnitude = chosen(_by_magnitude, warm_up=True)
_by_lamp = ranked(lambda view: lambda params, *_: jp.lamp(jp.magnitude(params)))
lamp = chosen(_by_lamp, warm_up=True)
snip = chosen(ranked(lambda view: jp.snip(view.loss)))
iterative_snip = chosen(in_rounds(lambda view: jp.snip(view.loss)))
biased_loss = chosen(ranked(lambda view: jp.biased_loss(view.loss)))
_by_preservation = ranked(lambda view: jp.gradient_preservation(view.loss))
gradient_preservation = chosen(_by_preservation)


@chosen
@ranked
def grasp(view: View) -> Score:
    temperature = view.options.grasp_temperature
    return jp.grasp(functools.partial(view.loss, temperature=temperature))


@chosen
@ranked
def fisher(view: View) -> Score:
    """Squares the gradients of ten parts of the batch, each with all classes."""

    def score(params: Any, *batch: Any) -> Any:
        parts = [tuple(x[i::10] for x in batch) for i in range(10)]
        parts = [part for part in parts if len(part[0])]
        flow = jp.mean_flow(lambda p, b: view.loss(p, *b), params, parts, order=1)
        return jp.measures.fisher(flow)

    return score


@chosen
@ranked
def prospr(view: View) -> Score:
    """Trains on three quarters of the batch, a step each, and scores on the fourth."""

    def score(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        # The images are sorted by class: every fourth is a quarter of each.
        parts = [(images[i::4], labels[i::4]) for i in range(4)]
        size = min(len(part) for _, part in parts)
        steps = jax.tree.map(lambda *x: jnp.stack([y[:size] for y in x]), *parts[:3])
        return jp.prospr(view.loss)(params, steps, *parts[3])

    return score


@chosen
def synflow(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
    """In float64, as its sums over paths overflow in deep networks."""
    with jax.enable_x64(True):  # Compiles here, so that max pooling is float64 too.
        return _synflow(view, params, sparsity)


_synflow = in_rounds(lambda view: jp.synflow(view.logits, dtype=jnp.float64), images=1)


@chosen
@masked
def force(view: View, params: Any, sparsity: Any) -> Any:
    """SNIP in rounds in which removed weights can come back."""
    return jp.force_mask(
        view.loss,
        params,
        *view.batch,
        sparsity=sparsity,
        rounds=view.options.rounds,
        measure=lambda flow: view.rank(jp.measures.loss_preservation(flow)),
    )


@functools.partial(chosen, warm_up=True)
@masked
def blocks(view: View, params: Any, sparsity: Any) -> Any:
    """Removes the smallest 4x4 blocks, in layers that they divide."""
    return jp.block_mask(
        view.rank(jp.magnitude(params)),
        sparsity,
        (4, 4),
        prunable=jp.divisible_by((4, 4), axis=(-2, -1)),
    )


def drive(**options: Any) -> StartFn:
    """Dense epochs, then rounds of its score, with the options of `jaxprune.drive`."""
    score = in_rounds(lambda view: jp.drive(view.loss, **options))
    return chosen(score, warm_up=True)


@chosen
def static(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
    """A random mask with Erdős-Rényi-kernel densities."""
    mask = jp.layerwise_mask(jp.random(view.key)(params), jp.erk(params, sparsity))
    return params, mask


@chosen
def orthogonal(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
    """Sparse orthogonal weights with Erdős-Rényi-kernel densities."""
    return jp.exact_orthogonal_init(
        view.key, params, jp.erk(params, sparsity), gain=2**0.5
    )


def sparse_mup(*, init: bool = True, learning_rate: bool = True) -> StartFn:
    """A random mask; initial weights and learning rates compensate for its density.

    Hidden layers, all but the first and the last, are equally sparse. The other two
    stay dense, so fewer weights are removed than asked for. With SGD, as with Adam, a
    step grows by the factor by which the density shrinks, as a unit sums over fewer
    weights.
    """

    def choose(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
        if not any(jax.tree.leaves(_hidden(params))):
            raise ValueError(
                "sparse_mup prunes the layers between the first and the last, and this "
                "network has none: pass --model.widths with one more width."
            )
        if init:
            scale = jp.sparse_mup(params, sparsity, hidden=_hidden).init
            params = jax.tree.map(jnp.multiply, params, scale)
        noise = jp.random(view.key)(params)
        return params, jp.layerwise_mask(noise, sparsity, prunable=_hidden)

    def optimizer(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
        del key
        shapes, _ = jax.eval_shape(setup.network.init, jax.random.key(0))
        rates = jp.sparse_mup(shapes, sparsity, hidden=_hidden).learning_rate
        link = jp.scale_leaves(rates) if learning_rate else optax.identity()
        return optax.chain(tx, link, jp.keep_sparse())

    def start(setup: Setup, sparsity: float) -> Start:
        found = setup.prune(setup.dense(0), choose, sparsity)
        return found._replace(recipe=Recipe(optimizer))

    return start


_FIRST_OR_LAST = r"layers/0/|convs/0/|stages/0/0/|stem/|embed/|output/"
_hidden = jp.by_path(rf"^(?!{_FIRST_OR_LAST}).*kernel")


# A trigger decides when.


def earlycrop(lab: Lab, sparsity: float) -> Start:
    """Gradient preservation, once the weights move little."""
    trigger = jp.earlycrop_trigger(sparsity)
    start = lab.dense_until(trigger, lambda params: params, lab.dense(1))
    return lab.prune(start, _by_preservation, sparsity)


def epi(lab: Lab, sparsity: float) -> Start:
    """Magnitude, once its mask changes little from epoch to epoch.

    It compares the masks of 2 epochs and not of 5, as training is short here.
    """

    def trial(params: Any) -> Any:
        return jp.global_mask(jp.magnitude(params), sparsity)

    start = lab.dense_until(jp.epi_trigger(0.983, window=2), trial, lab.dense(0))
    return lab.prune(start, _by_magnitude, sparsity)
