"""Methods that train dense weights through a sparse forward pass."""

import functools
from typing import Any

import jax

import jaxprune as jp
from experiments.config import Pruning
from experiments.models import Network
from experiments.pruners._types import KEEP, Factory, Forward, Pruner


def through(forward: Forward) -> Factory:
    """Starts dense, and never prunes what is trained."""

    def factory(config: Pruning, network: Network, steps: int) -> Pruner:
        del config, network, steps
        return Pruner(None, KEEP._replace(forward=forward))

    return factory


def _largest(params: Any, sparsity: Any, key: jax.Array, *, times: int = 1) -> Any:
    """The largest weights of each layer, ``times`` as many as the sparsity leaves.

    By one threshold for all layers some would be empty from the start, and what is
    empty lets no gradient through.
    """
    del key
    removed = jax.numpy.maximum(1 - times * (1 - sparsity), 0)
    return jp.layerwise_mask(jp.magnitude(params), removed)


def _two_of_four(params: Any, sparsity: Any, key: jax.Array) -> Any:
    del sparsity, key
    return jp.n_m_mask(jp.magnitude(params), 2, 4, prunable=jp.divisible_by(4))


def _drawn(params: Any, sparsity: Any, key: jax.Array) -> Any:
    return jp.layerwise_mask(jp.random(key)(params), sparsity)


STE = through(Forward(_largest))
SR_STE = through(Forward(_two_of_four, decay=2e-4))
TOP_KAST = through(Forward(_largest, reached=functools.partial(_largest, times=2)))
RANDOM_DROPOUT = through(Forward(_drawn, reached=_drawn))
