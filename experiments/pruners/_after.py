"""Methods that prune trained networks, which are evaluated as they are then.

They read the scoring batch only, no labels, and prune the kernels of all layers: as
many weights of every layer, or of every output, or 2 of every 4 along the inputs of
those layers that 4 divides.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax

import jaxprune as jp
from experiments.config import Pruning
from experiments.data import Split
from experiments.models import Network
from experiments.pruners._types import KEEP, Factory, Pruner

KERNELS = jp.by_path("kernel")

Apply = Callable[[Any, Any], jax.Array]
Prune = Callable[[Any, Any, float], tuple[Any, Any]]


def after(build: Callable[[Apply], Prune]) -> Factory:
    """Prunes with ``build(apply)(params, batch, sparsity) -> (params, mask)``."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del config, steps
        prune = build(_apply_of(network))

        def finish(
            params: Any, stats: Any, batch: Split, sparsity: float
        ) -> tuple[Any, Any]:
            return prune(params, (stats, batch.images), sparsity)

        return Pruner(None, KEEP, finish=finish)

    return factory


@functools.cache
def _apply_of(network: Network) -> Apply:
    """One function a network: what is compiled for it serves all seeds and methods."""

    def apply(params: Any, batch: Any) -> jax.Array:
        stats, images = batch
        return network.apply(params, stats, images, train=False)[0]

    return apply


def magnitude(apply: Apply) -> Prune:
    """Keeps the largest weights of every layer."""
    del apply

    def prune(params: Any, batch: Any, sparsity: float) -> tuple[Any, Any]:
        del batch
        scores = jp.magnitude(params)
        mask = jp.layerwise_mask(scores, sparsity, prunable=KERNELS)
        return jp.apply_mask(params, mask), mask

    return prune


def magnitude_n_m(apply: Apply) -> Prune:
    """Keeps the 2 largest of every 4 weights."""
    del apply

    def prune(params: Any, batch: Any, sparsity: float) -> tuple[Any, Any]:
        del batch, sparsity
        mask = jp.n_m_mask(jp.magnitude(params), 2, 4, prunable=_in_fours)
        return jp.apply_mask(params, mask), mask

    return prune


def wanda(apply: Apply) -> Prune:
    """Keeps as many weights of every output: size times the norm of the input."""
    score = jax.jit(jp.wanda(apply, prunable=KERNELS))

    def prune(params: Any, batch: Any, sparsity: float) -> tuple[Any, Any]:
        axes = jp.input_axes(apply, params, batch, prunable=KERNELS)
        scores = score(params, batch)
        mask = jp.row_mask(scores, sparsity, axis=axes, prunable=KERNELS)
        return jp.apply_mask(params, mask), mask

    return prune


def wanda_n_m(apply: Apply) -> Prune:
    """Keeps 2 of every 4 weights by the same score."""
    score = jax.jit(jp.wanda(apply, prunable=KERNELS))

    def prune(params: Any, batch: Any, sparsity: float) -> tuple[Any, Any]:
        del sparsity
        mask = jp.n_m_mask(score(params, batch), 2, 4, prunable=_in_fours)
        return jp.apply_mask(params, mask), mask

    return prune


def sparse_gpt(apply: Apply) -> Prune:
    """Prunes layer by layer; the weights that stay make up for those that go."""

    def prune(params: Any, batch: Any, sparsity: float) -> tuple[Any, Any]:
        return jp.sparse_gpt(
            apply, params, [batch], sparsity=sparsity, prunable=KERNELS
        )

    return prune


def sparse_gpt_n_m(apply: Apply) -> Prune:
    """The same, with 2 of every 4 weights kept."""

    def prune(params: Any, batch: Any, sparsity: float) -> tuple[Any, Any]:
        del sparsity
        return jp.sparse_gpt(apply, params, [batch], n_m=(2, 4), prunable=_in_fours)

    return prune


def _in_fours(tree: Any) -> Any:
    return jax.tree.map(operator.and_, KERNELS(tree), jp.divisible_by(4)(tree))
