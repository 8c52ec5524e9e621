"""Prunes blocks in order, each on the outputs of the pruned blocks before it."""

import functools
import warnings
from collections.abc import Callable, Iterable
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
    """Prunes blocks in order, each on the outputs of the pruned blocks before it.

    For each block, one pass over the batches collects the statistics that the method
    needs, the method prunes the block, and a second pass computes the inputs of the
    next block. Memory holds the network, its pruned copy and the masks, one block's
    statistics, and the hidden states. Blocks of equal shapes share all compiled
    programs. Blocks and batches may be sharded: statistics are sums over tokens.

    To resume, run ``hidden`` through the blocks that ``on_block`` saved, and prune the
    rest: ``prune_blocks(method, block_fn, blocks[k:], hidden, ...)``.

    Args:
      method: a post-training method, such as `sparse_gpt`, `admm` or
        ``jp.by_score(jp.wanda)``. ``functools.partial`` sets its options.
      block_fn: ``block_fn(block, hidden) -> hidden``. It closes over everything that
        the blocks share, such as positions and the attention mask.
      blocks: a list of trees of floating arrays, or a stack for ``scan``: one tree
        whose leaves have a leading axis of blocks.
      hidden: the inputs of the first block, such as embedded tokens: a list of batches,
        each a tree of arrays.
      sparsity: fraction of each layer's weights removed, in [0, 1): a number or a tree
        of numbers like a block, for all blocks; or a list with one entry for each
        block, such as `owl` returns.
      n_m: instead of ``sparsity``, the pair (n, m): n of every m inputs are kept.
      prior: masks like ``blocks``. Weights that they prune stay pruned.
      prunable: which leaves of a block take part; by default those that a product
        contracts with activations. Paths are relative to the block.
      on_block: ``on_block(i, block, mask)``, called after each block, for instance to
        save it or to show progress.

    Returns:
      The pruned blocks and their masks, each a list or a stack as ``blocks`` is.

    Raises:
      ValueError: if there are no blocks or batches, a list of sparsities or ``prior``
        has another length than the blocks, or the method raises it.
      TypeError: if ``method`` or ``block_fn`` cannot be called, or ``hidden`` is a
        single array.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> blocks = [jnp.array([[1.0, 2.0], [3.0, 1.0]]), jnp.array([[1.0, 1.0]] * 2)]
      >>> hidden = [jnp.array([[1.0, 0.1], [2.0, 0.1]])]
      >>> blocks, masks = jp.prune_blocks(
      ...     jp.by_score(jp.wanda), lambda w, x: x @ w, blocks, hidden, sparsity=0.5
      ... )
      >>> blocks[0]
      Array([[1., 2.],
             [0., 0.]], dtype=float32)
    """
    _checks.check_callable(method, "method", "such as jp.sparse_gpt")
    _checks.check_callable(block_fn, "block_fn", "block_fn(block, hidden) -> hidden")
    _checks.check_batches(hidden)
    hidden, count = list(hidden), count_blocks(blocks)
    sparsities = _per_block(sparsity, count)
    if prior is not None and (priors := count_blocks(prior, "prior")) != count:
        raise ValueError(
            f"prior has {priors} blocks, but there are {count}. To resume, slice it as "
            "blocks."
        )
    stacked = not is_listed(blocks)
    pruned = jax.tree.map(jnp.copy, blocks) if stacked else []
    masks = jax.tree.map(lambda x: jnp.ones_like(x, bool), blocks) if stacked else []
    for i in range(count):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                new, mask = method(
                    block_fn,
                    block_at(blocks, i),
                    hidden,
                    sparsity=sparsities[i],
                    n_m=n_m,
                    prior=None if prior is None else block_at(prior, i),
                    prunable=prunable,
                )
        except Exception as error:
            error.add_note(f"This was block {i}.")
            raise
        for given in caught:
            warnings.warn(f"Block {i}: {given.message}", given.category, stacklevel=2)
        if stacked:
            pruned, masks = _put((pruned, masks), (new, mask), i)
        else:
            pruned.append(new)
            masks.append(mask)
        if on_block is not None:
            on_block(i, new, mask)
        for j, batch in enumerate(hidden if i + 1 < count else []):
            hidden[j] = forward(block_fn, new, batch)
    return pruned, masks


def is_listed(blocks: Any) -> bool:
    """Tells a list of blocks from a stack, which may be a named tuple."""
    return isinstance(blocks, list | tuple) and not hasattr(blocks, "_fields")


def count_blocks(blocks: Any, name: str = "blocks") -> int:
    """Counts the blocks of a list or a stack; raises if there are none."""
    if is_listed(blocks):
        count = len(blocks)
    else:
        counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(blocks)}
        if len(counts) != 1 or () in counts:
            raise ValueError(
                f"{name} must be a list of trees, or a tree whose leaves all have the "
                f"same leading axis; their leading axes are {sorted(counts)}."
            )
        ((count,),) = counts
    if not count:
        raise ValueError(f"{name} is empty; pass at least one block.")
    return count


def block_at(blocks: Any, i: int) -> Any:
    """One block of a list or a stack."""
    if is_listed(blocks):
        return blocks[i]
    return _slice(blocks, i)


@jax.jit
def _slice(stack: Any, i: Any) -> Any:
    return jax.tree.map(lambda x: x[i], stack)


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: Any, block: Any, i: Any) -> Any:
    return jax.tree.map(lambda x, y: x.at[i].set(y), stack, block)


@functools.partial(jax.jit, static_argnums=0)
def forward(block_fn: Callable[..., Any], block: Any, hidden: Any) -> Any:
    """Runs one block."""
    return block_fn(block, hidden)


def _per_block(sparsity: Any, count: int) -> list[Any]:
    if not isinstance(sparsity, list | tuple):
        return [sparsity] * count
    if len(sparsity) != count:
        raise ValueError(
            f"sparsity is a list of {len(sparsity)}, but there are {count} blocks. "
            "Pass one number for all, or one for each."
        )
    return list(sparsity)
