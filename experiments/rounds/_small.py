"""How small, cheap and fast a pruned network is: counted, and measured."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.data import Dataset
from experiments.models import Network
from experiments.rounds._train import State

_BATCH, _TIMES = 100, 25


def find_groups(network: Network, params: Any, stats: Any, dataset: Dataset) -> Any:
    """Finds the groups of filters that can only be removed together."""
    return jp.structured.channel_groups(
        _apply(network, stats), params, _images(dataset)
    )


def measure_size(
    network: Network, state: State, mask: Any, groups: Any, dataset: Dataset, level: str
) -> dict[str, Any]:
    """Counts parameters and the FLOPs of one image.

    Filters are really removed. Single weights are not: the FLOPs are those that
    hardware could leave out, and the program costs what it cost before.
    """
    apply, images = _apply(network, state.stats), _images(dataset)
    if level == "weights":
        cost = jp.cost(apply, state.params, images, mask=mask)
        return {"parameters": int(cost.nonzero), "flops": cost.sparse_flops / _BATCH}
    small, params = jp.structured.shrink(apply, state.params, mask, groups)
    cost = jp.cost(small, params, images)
    return {"parameters": int(cost.params), "flops": cost.flops / _BATCH}


def measure_latency(
    network: Network, state: State, mask: Any, groups: Any, dataset: Dataset
) -> dict[str, float]:
    """Times a batch in the masked and in the shrunk network, and compares outputs.

    Returns:
      Seconds, "masked" and "small", and the largest "difference" of an output, relative
      to the largest output.
    """
    apply, images = _apply(network, state.stats), _images(dataset)
    masked = jax.jit(apply)
    small, params = jp.structured.shrink(apply, state.params, mask, groups)
    reference, outputs = masked(state.params, images), small(params, images)
    error = jnp.max(jnp.abs(outputs - reference)) / jnp.max(jnp.abs(reference))
    seconds = _in_turn(
        lambda: masked(state.params, images), lambda: small(params, images)
    )
    return dict(zip(("masked", "small"), seconds, strict=True), difference=float(error))


def _apply(network: Network, stats: Any) -> Callable[..., jax.Array]:
    return lambda params, images: network.apply(params, stats, images, train=False)[0]


def _images(dataset: Dataset) -> jax.Array:
    return dataset.standardise(dataset.test.images[:_BATCH])


def _in_turn(*functions: Callable[[], Any]) -> list[float]:
    """The median seconds of each, called in turn, after a first call."""
    times = np.zeros((_TIMES + 1, len(functions)))
    for row in times:
        for i, function in enumerate(functions):
            started = time.perf_counter()
            jax.block_until_ready(function())
            row[i] = time.perf_counter() - started
    return np.median(times[1:], axis=0).tolist()
