"""What prunes a language model after training: single weights, or whole structures.

Each block is pruned for the hidden states that come out of the pruned blocks before it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp

POST_TRAINING: dict[str, Callable[..., Any]] = {
    "magnitude": jp.by_score(jp.magnitude),
    "wanda": jp.by_score(jp.wanda),
    "wanda_dsnot": jp.dsnot(jp.by_score(jp.wanda)),
    "ria": jp.by_score(jp.ria),
    "sparse_gpt": jp.sparse_gpt,
    "admm": jp.admm,
}
ALLOCATED = ("wanda", "sparse_gpt")


class Dense(NamedTuple):
    """The dense model, and the text that calibrates its pruning.

    Attributes:
      params: the dense model's parameters, as in `experiments.models._llama`.
      block_fn: ``block_fn(block, hidden) -> hidden``, jitted.
      hidden: the calibration text as the first block reads it, in batches.
    """

    params: Any
    block_fn: Callable[[Any, jax.Array], jax.Array]
    hidden: list[jax.Array]
    head_dim: int


def sparsify(
    dense: Dense,
    method: str,
    amount: Mapping[str, Any],
    *,
    owl: bool,
    first: int | None,
    on_block: Callable[..., None],
) -> tuple[Any, Any]:
    """Removes single weights from every block.

    Args:
      dense: the model.
      method: a name in `POST_TRAINING`.
      amount: the sparsity, or n_m.
      owl: give each block a sparsity of its own, of this mean.
      first: prune only the first so many blocks; None is all.
      on_block: called with the number of each block that is done, and more.

    Returns:
      The parameters and the mask.
    """
    blocks = dense.params["blocks"]
    chosen = blocks[:first]
    rest = blocks[len(chosen) :]
    if owl:
        amount = {"sparsity": jp.owl(dense.block_fn, chosen, dense.hidden, **amount)}
    pruned, masks = jp.prune_blocks(
        POST_TRAINING[method],
        dense.block_fn,
        chosen,
        dense.hidden,
        **amount,
        on_block=on_block,
    )
    whole = jax.tree.map(
        lambda leaf: jnp.ones_like(leaf, dtype=bool), {**dense.params, "blocks": rest}
    )
    params = {**dense.params, "blocks": [*pruned, *rest]}
    return params, {**whole, "blocks": [*masks, *whole["blocks"]]}


def without_hidden(dense: Dense, fraction: float) -> Any:
    """Removes hidden units, the least active, the same number of every block."""
    size = dense.params["blocks"][0]["up"].shape[1]
    return _narrowed(dense, fraction, {"gate": 1, "up": 1, "down": 0}, size, 1)


def without_heads(dense: Dense, fraction: float) -> Any:
    """Removes query heads, the same number of each group that shares a key."""
    block, size = dense.params["blocks"][0], dense.head_dim
    heads, groups = (block[name].shape[1] // size for name in "qk")
    return _narrowed(dense, fraction, {"q": 1, "o": 0}, heads, groups)


def _narrowed(
    dense: Dense, fraction: float, axes: dict[str, int], size: int, within: int
) -> Any:
    """Removes slices of every block, scored where the blocks before are narrow."""
    blocks, hidden = [], dense.hidden
    for block in dense.params["blocks"]:
        groups = jp.structured.slice_groups(block, axes, size, within=within)
        scores = jp.structured.minitron(dense.block_fn, block, hidden, groups)
        mask = jp.structured.structured_mask(
            scores, groups, block, fraction, scope="group"
        )
        blocks.append(jp.structured.narrow(block, mask, groups))
        hidden = [dense.block_fn(blocks[-1], batch) for batch in hidden]
    return {**dense.params, "blocks": blocks}


def without_blocks(dense: Dense, fraction: float) -> Any:
    """Removes the blocks that change the hidden states least."""
    blocks = dense.params["blocks"]
    influence = jp.structured.block_influence(dense.block_fn, blocks, dense.hidden)
    drop = jnp.argsort(influence)[: round(fraction * len(blocks))]
    return {**dense.params, "blocks": jp.structured.drop_blocks(blocks, drop)}


class Removal(NamedTuple):
    """A way to remove whole parts of a model.

    Attributes:
      remove: ``remove(dense, fraction) -> params``.
      fraction: of the hidden units of a block, of the heads that share a key, or of all
        blocks; rounded to whole ones.
    """

    remove: Callable[[Dense, float], Any]
    fraction: float


REMOVALS = {
    "hidden units": Removal(without_hidden, 1 / 4),
    "heads": Removal(without_heads, 1 / 3),
    "blocks": Removal(without_blocks, 1 / 5),
}
