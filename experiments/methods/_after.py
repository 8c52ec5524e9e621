"""Methods that prune trained networks, which are evaluated without more training.

They read the images of the scoring batch, not the labels, and prune kernels only.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

import jaxprune as jp
from experiments.methods._start import Choose, Score, Setup, Start, StartFn

if TYPE_CHECKING:
    from experiments.models import Network
    from experiments.training import View

_kernels = jp.by_path("kernel")


def _fours(tree: Any) -> Any:
    return jax.tree.map(operator.and_, _kernels(tree), jp.divisible_by(4)(tree))


def after(choose: Choose) -> StartFn:
    """Prunes trained networks; the time of their training does not count."""

    def start(setup: Setup, sparsity: float) -> Start:
        trained = setup.dense(setup.epochs)._replace(pruning_seconds=0.0)
        return setup.prune(trained, choose, sparsity)

    return start


@after
def magnitude(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
    """Keeps the largest weights of every layer."""
    del view
    mask = jp.layerwise_mask(jp.magnitude(params), sparsity, prunable=_kernels)
    return jp.apply_mask(params, mask), mask


@after
def magnitude_n_m(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
    """Keeps the 2 largest of every 4 weights."""
    del view, sparsity
    mask = jp.n_m_mask(jp.magnitude(params), 2, 4, prunable=_fours)
    return jp.apply_mask(params, mask), mask


@functools.cache  # Seeds and methods share the programs compiled for it.
def _apply_of(network: Network) -> Callable[[Any, Any], jax.Array]:
    return lambda params, batch: network.apply(params, *batch, train=False)[0]


@functools.cache
def _wanda_of(network: Network) -> Score:
    return jax.jit(jp.wanda(_apply_of(network), prunable=_kernels))


@after
def wanda(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
    """Keeps the best weights of every output: size times the norm of the input."""
    batch = view.stats, view.batch.images
    apply = _apply_of(view.network)
    axes = jp.input_axes(apply, params, batch, prunable=_kernels)
    scores = _wanda_of(view.network)(params, batch)
    mask = jp.row_mask(scores, sparsity, axis=axes, prunable=_kernels)
    return jp.apply_mask(params, mask), mask


@after
def wanda_n_m(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
    """Keeps the best 2 of every 4 weights by the same score."""
    del sparsity
    scores = _wanda_of(view.network)(params, (view.stats, view.batch.images))
    mask = jp.n_m_mask(scores, 2, 4, prunable=_fours)
    return jp.apply_mask(params, mask), mask


def sparse_gpt(*, n_m: tuple[int, int] | None = None) -> StartFn:
    """Prunes layer by layer; the remaining weights compensate for the removed ones."""

    def choose(view: View, params: Any, sparsity: float) -> tuple[Any, Any]:
        return jp.sparse_gpt(
            _apply_of(view.network),
            params,
            [(view.stats, view.batch.images)],
            sparsity=None if n_m else sparsity,
            n_m=n_m,
            prunable=_fours if n_m else _kernels,
        )

    return after(choose)
