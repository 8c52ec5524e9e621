"""Removes whole blocks: how much each changes the hidden states, and the model without.

A model's blocks are a list of parameters or modules, or one tree of arrays stacked
along their leading axis for ``scan``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core import _checks
from jaxprune.structured._adapters import take


def block_influence(
    block_fn: Callable[..., jax.Array], blocks: Any, hidden: Iterable[Any]
) -> jax.Array:
    r"""Scores each block by how far it turns the hidden states that pass through it.

    With :math:`h_l` the hidden state of a token before block :math:`l`, a block scores

    .. math:: \mathrm{BI}_l = 1 - \mathbb{E}\,
        \frac{h_l^\top h_{l+1}}{\lVert h_l \rVert \, \lVert h_{l+1} \rVert} ,

    the mean over all tokens. The paper removes the blocks with the lowest influence:
    pass ``jnp.argsort(influence)[:n]`` to `drop_blocks`.

    Args:
      block_fn: ``block_fn(block, hidden) -> hidden``, of shape (..., width). It is
        called as it is: pass a jitted function, and blocks of one shape share it.
      blocks: a list of blocks, or a tree of arrays that stacks them along axis 0.
      hidden: batches of hidden states before the first block.

    Returns:
      A float32 array of shape (blocks,), larger = keep, each in [0, 2].

    Raises:
      ValueError: if there are no blocks or no batches, a stack's leaves differ in their
        leading axis, or ``block_fn`` changes the shape of the hidden states.
      TypeError: if ``hidden`` is a single array, or ``block_fn`` is no function.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> def block_fn(block, hidden):
      ...     return hidden @ block["w"]
      >>> blocks = [{"w": jnp.array([[0.0, 1.0], [1.0, 0.0]])}, {"w": 3 * jnp.eye(2)}]
      >>> jp.structured.block_influence(block_fn, blocks, [jnp.eye(2)])
      Array([1., 0.], dtype=float32)

    References:
      Men et al., `ShortGPT: Layers in Large Language Models are More Redundant Than You
      Expect <https://arxiv.org/abs/2403.03853>`_, 2024, Section 3.1.
    """
    count, sums, tokens = _check(block_fn, blocks, hidden), [], 0
    for batch in hidden:
        states = _states(block_fn, blocks, batch, count)
        last, found = next(states), []
        for state in states:
            found.append(jnp.sum(_turned(last, state)))
            last = state
        sums.append(jnp.stack(found))
        tokens += last.size // last.shape[-1]
    return _total(sums) / tokens


def angular_distance(
    block_fn: Callable[..., jax.Array], blocks: Any, hidden: Iterable[Any], n: int
) -> jax.Array:
    r"""Measures how far each run of ``n`` blocks turns the last token's hidden state.

    With :math:`h_l` the hidden state of a sequence's last token before block :math:`l`,
    the run that starts there scores

    .. math:: d(l, n) = \mathbb{E} \, \frac{1}{\pi} \arccos
        \frac{h_l^\top h_{l+n}}{\lVert h_l \rVert \, \lVert h_{l+n} \rVert} ,

    the mean over all sequences. The paper removes the run with the least distance: pass
    ``start + jnp.arange(n)`` to `drop_blocks`, with ``start`` the argmin.

    Args:
      block_fn: ``block_fn(block, hidden) -> hidden``, of shape (..., tokens, width). It
        is called as it is: pass a jitted function, and blocks of one shape share it.
      blocks: a list of blocks, or a tree of arrays that stacks them along axis 0.
      hidden: batches of hidden states before the first block.
      n: the blocks in a run, at least 1.

    Returns:
      A float32 array of shape (blocks - n + 1,): the distance, in [0, 1], of the run
      that starts at each block.

    Raises:
      ValueError: if there are fewer than ``n`` blocks or no batches, a stack's leaves
        differ in their leading axis, or ``block_fn`` changes the shape of the hidden
        states.
      TypeError: if ``hidden`` is a single array, or ``block_fn`` is no function.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
      >>> blocks, hidden = [turn, turn, jnp.eye(2)], [jnp.ones((1, 5, 2))]
      >>> jp.structured.angular_distance(lambda w, h: h @ w, blocks, hidden, 2)
      Array([1. , 0.5], dtype=float32)

    References:
      Gromov et al., `The Unreasonable Ineffectiveness of the Deeper Layers
      <https://arxiv.org/abs/2403.17887>`_, ICLR 2025, Section 3.2.
    """
    count, sums, sequences = _check(block_fn, blocks, hidden), [], 0
    n = _checks.static_count(n, "n", "blocks in a run")
    if n > count:
        raise ValueError(f"A run of n={n} blocks does not fit into {count} blocks.")
    for batch in hidden:
        last = [s[..., -1, :] for s in _states(block_fn, blocks, batch, count)]
        starts, ends = jnp.stack(last[:-n]), jnp.stack(last[n:])
        angles = _angle(starts, ends) / jnp.pi
        angles = angles.reshape(len(angles), -1)
        sums.append(jnp.sum(angles, axis=1))
        sequences += angles.shape[1]
    return _total(sums) / sequences


def drop_blocks(blocks: Any, drop: Any) -> Any:
    """Removes blocks of a model, in a list or along the leading axis of a stack.

    The function needs no change if it loops over the list or scans over the stack.

    Args:
      blocks: a list or tuple of blocks, an ``nnx.List`` of modules, or a tree of arrays
        that stacks them along axis 0.
      drop: the indices of the blocks to remove, concrete; negative ones count from the
        end. `block_influence` and `angular_distance` say which matter least.

    Returns:
      The other blocks, in their order: a sequence of the type of ``blocks``, which
      holds the same objects, or a tree of shorter arrays.

    Raises:
      ValueError: if an index is out of range or stands twice, no block would be left,
        or a stack's leaves differ in their leading axis.
      TypeError: if ``drop`` holds anything but whole numbers.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.structured.drop_blocks(["a", "b", "c", "d"], [1, -1])
      ['a', 'c']
      >>> jp.structured.drop_blocks({"w": jnp.arange(4.0)}, [0, 1])
      {'w': Array([2., 3.], dtype=float32)}
    """
    count = _count(blocks)
    gone = _indices(drop, count)
    kept = [i for i in range(count) if i not in gone]
    if not kept:
        raise ValueError(f"drop names all {count} blocks; keep at least one.")
    if isinstance(blocks, Sequence):
        return type(blocks)([blocks[i] for i in kept])  # pyright: ignore[reportCallIssue]
    return jax.tree.map(lambda leaf: take(leaf, 0, np.asarray(kept)), blocks)


def _indices(drop: Any, count: int) -> list[int]:
    """Reads the indices of blocks, as numbers from 0."""
    given = np.asarray(drop)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise TypeError(
            "drop must be the indices of blocks, such as [3, 4]; got "
            f"{_checks.described(drop)}."
        )
    flat = [i + count if i < 0 else i for i in given.ravel().tolist()]
    if any(not 0 <= i < count for i in flat) or len(set(flat)) != len(flat):
        raise ValueError(
            f"drop must name different blocks out of {count}, from 0 to {count - 1}; "
            f"got {given.tolist()}."
        )
    return flat


def _check(block_fn: Any, blocks: Any, hidden: Any) -> int:
    _checks.check_callable(block_fn, "block_fn", "block_fn(block, hidden) -> hidden")
    _checks.check_batches(hidden)
    return _count(blocks)


def _total(sums: list[jax.Array]) -> jax.Array:
    if not sums:
        raise ValueError("hidden has no batches. Pass a list of hidden states.")
    return jnp.sum(jnp.stack(sums), axis=0)


def _count(blocks: Any) -> int:
    """Counts the blocks of a sequence, or of a stack."""
    if isinstance(blocks, Sequence) and not isinstance(blocks, str):
        count = len(blocks)
    else:
        sizes = {
            path: np.shape(leaf)[0] if np.ndim(leaf) else 0
            for path, leaf in zip(
                _checks.leaf_paths(blocks), jax.tree.leaves(blocks), strict=True
            )
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(
                "A stack of blocks has one leading axis of the same size in every "
                f"leaf; got {sizes}. Pass a list of blocks otherwise."
            )
        count = next(iter(sizes.values()), 0)
    if not count:
        raise ValueError(
            "There are no blocks. Pass a list of blocks, or a tree of arrays stacked "
            f"along axis 0; got {_checks.described(blocks)}."
        )
    return count


def _states(
    block_fn: Callable[..., jax.Array], blocks: Any, hidden: Any, count: int
) -> Iterator[jax.Array]:
    """The hidden states before the first block and after each."""
    yield hidden
    for i in range(count):
        if isinstance(blocks, Sequence):
            block = blocks[i]
        else:
            block = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
        new = block_fn(block, hidden)
        if jnp.shape(new) != jnp.shape(hidden):
            raise ValueError(
                f"block_fn must keep the shape of the hidden states, {hidden.shape}; "
                f"block {i} returned {_checks.described(new)}."
            )
        hidden = new
        yield hidden


@jax.jit
def _turned(left: jax.Array, right: jax.Array) -> jax.Array:
    """One minus the cosine of the angle between vectors along the last axis."""
    return jnp.sum(jnp.square(_unit(left) - _unit(right)), axis=-1) / 2


@jax.jit
def _angle(left: jax.Array, right: jax.Array) -> jax.Array:
    """The angle between vectors along the last axis, accurate for small ones too."""
    left, right = _unit(left), _unit(right)
    apart = jnp.linalg.norm(left - right, axis=-1)
    return 2 * jnp.arctan2(apart, jnp.linalg.norm(left + right, axis=-1))


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1)
