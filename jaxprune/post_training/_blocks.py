"""Prunes a network block by block, each on the outputs of the pruned ones before it."""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Params, Prunable
from jaxprune.core import _checks
from jaxprune.post_training._by_score import Method


def prune_blocks(
    method: Method,
    block_fn: Callable[[Any, Any], Any],
    blocks: Any,
    hidden: Iterable[Any],
    *,
    sparsity: Any = None,
    n_m: tuple[int, int] | None = None,
    prior: Any = None,
    prunable: Prunable | None = None,
    on_block: Callable[[int, Params, Mask], Any] | None = None,
) -> tuple[Any, Any]:
    """Prunes blocks one after the other, each on the outputs of the pruned ones."""
    _checks.check_callable(method, "method", "such as jp.sparse_gpt")
    _checks.check_callable(block_fn, "block_fn", "block_fn(block, hidden) -> hidden")
    _checks.check_batches(hidden)
    hidden = list(hidden)
    stacked = not isinstance(blocks, Sequence)
    count = jax.tree.leaves(blocks)[0].shape[0] if stacked else len(blocks)
    each = _per_block(sparsity, count, stacked)
    new_blocks = jax.tree.map(jnp.copy, blocks) if stacked else list(blocks)
    masks = jax.tree.map(lambda x: jnp.ones_like(x, bool), blocks) if stacked else []

    def at(tree: Any, i: int) -> Any:
        return jax.tree.map(lambda x: x[i], tree) if stacked else tree[i]

    for i in range(count):
        block = at(blocks, i)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            new, mask = method(
                block_fn,
                block,
                hidden,
                sparsity=each[i],
                n_m=n_m,
                prior=None if prior is None else at(prior, i),
                prunable=prunable,
            )
        for warning in caught:
            warnings.warn(
                f"Block {i}: {warning.message}", warning.category, stacklevel=2
            )
        if i + 1 < count:
            for j, batch in enumerate(hidden):
                hidden[j] = _forward(block_fn, new, batch)
        if stacked:
            new_blocks, masks = _put((new_blocks, masks), (new, mask), i)
        else:
            new_blocks[i] = new
            masks.append(mask)
        if on_block is not None:
            on_block(i, new, mask)
    return new_blocks, masks


@functools.partial(jax.jit, static_argnums=0)
def _forward(block_fn: Callable[..., Any], block: Any, hidden: Any) -> Any:
    return block_fn(block, hidden)


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: Any, block: Any, i: Any) -> Any:
    return jax.tree.map(lambda x, y: x.at[i].set(y), stack, block)


def _per_block(sparsity: Any, count: int, stacked: bool) -> list[Any]:
    if isinstance(sparsity, list | tuple):
        if len(sparsity) != count:
            raise ValueError(
                f"sparsity is a list of {len(sparsity)}, but there are {count} blocks."
            )
        return list(sparsity)
    return [sparsity] * count
