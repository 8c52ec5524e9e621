"""Iterative magnitude pruning with rewinding (Frankle et al., 2020): one chain.

A round trains to the end, removes a fraction of the weights that are left, and sets the
survivors back to what they were. The mask of every sparsity asked for is a link of the
one chain; the network trained with it is read off there.
"""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp


class Link(NamedTuple):
    """One of the sparsities asked for: its masks, and the seconds that they took."""

    sparsity: float
    mask: Any
    seconds: float


def rounds(targets: tuple[float, ...], fraction: float) -> list[float]:
    """The sparsities after each round, in which every target is met exactly.

    A round removes ``fraction`` of what is left, or as much as the next target allows.
    """
    sparsity, found = 0.0, []
    for target in sorted(targets):
        while sparsity < target:
            sparsity = 1 - (1 - sparsity) * (1 - fraction)
            if sparsity > target or math.isclose(sparsity, target):
                sparsity = target
            found.append(sparsity)
    return found


def chain(
    train: Any, start: Any, targets: tuple[float, ...], fraction: float
) -> Iterator[Link]:
    """Finds the masks of all seeds, one target after the other.

    Args:
      train: ``train(mask) -> params``: trains from the saved weights to the end, with
        the mask; all trees have a leading axis of seeds.
      start: the masks of the first round, all True.
      targets: the sparsities to yield.
      fraction: of the weights that are left, what a round removes.
    """
    mask, began = start, time.perf_counter()
    if 0.0 in targets:
        yield Link(0.0, start, 0.0)
    for sparsity in rounds(targets, fraction):
        params = train(mask)
        mask = jax.block_until_ready(_cut(params, mask, sparsity))
        if sparsity in targets:
            yield Link(sparsity, mask, time.perf_counter() - began)


def _cut(params: Any, mask: Any, sparsity: float) -> Any:
    """Removes the smallest weights of each seed's network, inside its mask."""

    def one(params: Any, mask: Any) -> Any:
        return jp.global_mask(jp.magnitude(params), sparsity, prior=mask)

    size = len(jax.tree.leaves(mask)[0])
    cut = [one(*jax.tree.map(lambda x, i=i: x[i], (params, mask))) for i in range(size)]
    return jax.tree.map(lambda *m: jnp.stack(m), *cut)
