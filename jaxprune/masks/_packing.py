"""Many leaves as the rows of one matrix, so that hundreds compile like one.

Every leaf is flattened and padded to whole rows. A row belongs to one leaf, so a vector
with an entry per leaf becomes one with an entry per row by indexing, and counts per row
become counts per leaf by a segment sum.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core._cut import cut
from jaxprune.core._uint64 import Wide
from jaxprune.masks import _keys

_LONGEST, _SHORTEST = 4096, 128  # Entries of a row.
_LANES = 128  # Counts kept side by side while a row is walked.
_SLICE = 8  # Entries summed at a time: XLA on CPU fuses short sums.
_FIELD = 10  # Bits of a count while up to three of them share one uint32.


class Rows(NamedTuple):
    """Leaves packed into the rows of one matrix of keys.

    Attributes:
      keys: the keys, of shape (rows, width); padding is absent.
      owner: for each row the position of its leaf, a NumPy array.
      shapes: the shapes of the leaves.
    """

    keys: jax.Array
    owner: np.ndarray
    shapes: tuple[tuple[int, ...], ...]


def pack(
    leaves: Sequence[jax.Array],
    eligible: Sequence[jax.Array] | None,
    excluded: Sequence[jax.Array] | None,
    dtype: Any,
    of: Callable[[jax.Array], jax.Array],
) -> Rows:
    """Packs ``of`` the leaves in ``dtype``; what does not take part becomes absent."""
    values, owner, real = _matrix(leaves, dtype)
    if eligible is not None:
        real &= _matrix(eligible, bool)[0]
    if excluded is not None:
        real &= ~_matrix(excluded, bool)[0]
    # Written once: else every pass that reads the keys would compute them anew.
    keys = jax.lax.optimization_barrier(_keys.to_keys(of(values), real))
    return Rows(keys, owner, tuple(leaf.shape for leaf in leaves))


def count_true(leaves: Sequence[jax.Array]) -> Wide:
    """Counts the True entries of each bool leaf."""
    flags, owner, _ = _matrix(leaves, bool)
    (counts,) = _row_counts(flags, [jnp.ones(len(flags), bool)], jnp.equal)
    counts = jax.ops.segment_sum(counts, owner, len(leaves), True)
    return Wide(jnp.zeros_like(counts), counts)


def _matrix(
    leaves: Sequence[jax.Array], dtype: Any
) -> tuple[jax.Array, np.ndarray, jax.Array]:
    """The rows of all leaves, the leaf of each row, and the entries not padding."""
    sizes = np.array([leaf.size for leaf in leaves])
    width = _LONGEST
    while width > _SHORTEST and width * len(sizes) > sizes.sum():
        width //= 2
    rows = -(-sizes // width)
    owner = np.repeat(np.arange(len(sizes)), rows)
    index = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    used = np.minimum(sizes[owner] - width * index, width).astype(np.int32)
    parts = []
    for leaf, size, n in zip(leaves, sizes.tolist(), rows.tolist(), strict=True):
        # Traced once per leaf, which numpy's spelling of these makes slow.
        parts.append(jax.lax.convert_element_type(jax.lax.reshape(leaf, [size]), dtype))
        if n * width > size:
            parts.append(jnp.zeros(n * width - size, dtype))
    position = jax.lax.broadcasted_iota(jnp.int32, (len(owner), width), 1)
    return jnp.concatenate(parts).reshape(-1, width), owner, position < used[:, None]


def count_reached(rows: Rows, candidates: Sequence[jax.Array]) -> list[Wide]:
    """Counts, for up to three candidates a leaf, its keys that reach them."""
    counts = _row_counts(
        rows.keys, [c[rows.owner] for c in candidates], jnp.greater_equal
    )
    return [Wide(jnp.zeros_like(n), n) for n in map(_per_leaf(rows), counts)]


def count_equal(rows: Rows, key: jax.Array) -> Wide:
    """Counts the keys of each leaf that equal its key."""
    (ties,) = _row_counts(rows.keys, [key[rows.owner]], jnp.equal)
    ties = _per_leaf(rows)(ties)
    return Wide(jnp.zeros_like(ties), ties)


def choose(rows: Rows, key: jax.Array, room: Wide) -> jax.Array:
    """Marks the keys above each leaf's key, and the first ``room`` of its equals.

    Whole rows of ties are let in until the room is too small for the next: within that
    row of each leaf the position is found at which the room is used up.
    """
    keys, owner = rows.keys, rows.owner
    number, width = keys.shape
    (ties,) = _row_counts(keys, [key[owner]], jnp.equal)
    ties = ties.astype(jnp.int32)
    until = jnp.cumsum(ties, dtype=jnp.int32)
    first = np.searchsorted(owner, np.arange(len(rows.shapes)))  # The leaf's first row.
    before = until - ties
    before = before - before[np.minimum(first, number - 1)][owner]
    room = room.low.astype(jnp.int32)
    admitted = jnp.clip(room[owner] - before, 0, ties)

    partial = jnp.where((0 < admitted) & (admitted < ties), jnp.arange(number), 0)
    edge = jax.ops.segment_max(partial, owner, len(rows.shapes), True)
    edge = jnp.maximum(edge, 0)  # A leaf without rows has none.
    rank = _prefix_counts(keys[edge] == key[:, None])
    inside = jnp.sum(rank <= admitted[edge][:, None], axis=1, dtype=jnp.int32)
    bound = jnp.where(
        admitted == ties, width, jnp.where(admitted == 0, 0, inside[owner])
    )

    key = key[owner][:, None]
    position = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    tied = (keys == key) & (keys != _keys.ABSENT) & (position < bound[:, None])
    return (keys > key) | tied


def unpack(matrix: jax.Array, leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Takes a matrix of rows apart into arrays of the leaves' shapes."""
    width = matrix.shape[1]
    rows = [-(-leaf.size // width) for leaf in leaves]
    starts = [width * n for n in itertools.accumulate(rows, initial=0)][:-1]
    return cut(matrix.reshape(-1), starts, [leaf.shape for leaf in leaves])


def _per_leaf(rows: Rows) -> Any:
    leaves = len(rows.shapes)
    return lambda counts: jax.ops.segment_sum(counts, rows.owner, leaves, True)


def _row_counts(keys: jax.Array, bounds: Sequence[jax.Array], test: Any) -> list[Any]:
    """Counts in every row the keys that pass a test against the row's bounds."""

    def fused(keys: jax.Array, *bounds: jax.Array) -> list[jax.Array]:
        return [
            jnp.sum(test(keys, b[:, None]), axis=1, dtype=jnp.uint32) for b in bounds
        ]

    def sliced(keys: jax.Array, *bounds: jax.Array) -> list[jax.Array]:
        lanes = keys.reshape(len(keys), -1, _LANES)
        width = min(_SLICE, lanes.shape[1])

        def add(i: jax.Array, packed: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(lanes, i * width, width, 1)
            fields = jnp.zeros(part.shape, jnp.uint32)
            for j, bound in enumerate(bounds):
                passed = test(part, bound[:, None, None]).astype(jnp.uint32)
                fields |= passed << np.uint32(_FIELD * j)
            return packed + jnp.sum(fields, axis=1, dtype=jnp.uint32)

        start = jnp.zeros_like(lanes[:, 0], jnp.uint32)
        packed = jax.lax.fori_loop(0, lanes.shape[1] // width, add, start)
        mask = np.uint32(2**_FIELD - 1)
        return [
            jnp.sum((packed >> np.uint32(_FIELD * j)) & mask, axis=1, dtype=jnp.uint32)
            for j in range(len(bounds))
        ]

    # XLA fuses a comparison into the sum over it on accelerators, but not on CPU.
    return jax.lax.platform_dependent(keys, *bounds, cpu=sliced, default=fused)


def _prefix_counts(flags: jax.Array) -> jax.Array:
    """Counts the True entries of each row up to and including every position.

    Two products with triangles of ones: exact, as no sum passes `_LONGEST`.
    """
    inner = min(64, flags.shape[1])
    blocks = flags.reshape(len(flags), -1, inner).astype(jnp.float32)
    upper = np.triu(np.ones((inner, inner), np.float32))
    within = jnp.einsum("rbi,ij->rbj", blocks, upper)
    outer = np.triu(np.ones((blocks.shape[1],) * 2, np.float32), 1)
    before = jnp.einsum("rb,bc->rc", within[:, :, -1], outer)
    return (within + before[:, :, None]).reshape(flags.shape).astype(jnp.int32)
