"""Counting entries of a tree that pass a test, in one pass and without temporaries.

On accelerators XLA fuses a comparison into the sum over it. On CPU it writes the
comparison out first, which costs eight times the pass; there the leaves are walked in
slices small enough to be fused, along an axis that no device boundary cuts.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxprune.core import _checks, _uint64
from jaxprune.core._placement import large_or_shared, most_shards, spec_of
from jaxprune.core._uint64 import Wide
from jaxprune.masks import _packing

_SMALL = 2**16  # Leaves below this size are stacked, and are counted in one piece.
_SLICE = 8  # Entries summed at a time: XLA fuses short sums, and caches hold them.
_SHORTEST = 32  # The shortest axis worth walking along.
_WALKED = 128  # An axis is split further than need be down to this length.
_ROWS = range(4096, 63, -1)  # The row lengths that a vector may be folded into.
_FIELD = 10  # Bits a count takes while three of them share one uint32.


class Region(NamedTuple):
    """A block of an array of ``shape``: where it starts, its own shape and layout."""

    shape: tuple[int, ...]
    start: tuple[Any, ...]
    block: tuple[int, ...]
    sharding: Any = None  # On Explicit meshes: else every device would index it all.


class Stack(NamedTuple):
    """Leaves of one shape as one array with a leading axis.

    A very large leaf is a stack of its own: it is not copied, the axis is only added.
    """

    values: jax.Array
    eligible: jax.Array | None


def partition(leaves: Sequence[jax.Array]) -> tuple[list[int], list[list[int]]]:
    """Says which leaves to pack into rows, and which to stack where they are.

    Leaves are packed unless they are very large or devices may share them.

    Returns:
      The positions of the leaves to pack, and those of each stack.
    """
    rows: list[int] = []
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if not large_or_shared(leaf):
            rows.append(i)
        else:
            # Devices may cut leaves of one shape differently: large ones stay alone.
            key = i if leaf.size >= _SMALL else (leaf.shape, spec_of(leaf))
            groups.setdefault(key, []).append(i)
    return rows, list(groups.values())


def stack(
    leaves: Sequence[jax.Array],
    eligible: Sequence[jax.Array] | None = None,
    excluded: Sequence[jax.Array] | None = None,
) -> Stack:
    """Stacks leaves of one shape.

    The barrier has scores that are still being computed written once, not once a pass.
    """
    flags = None if eligible is None else jnp.stack(eligible)
    if excluded is not None:
        others = ~jnp.stack(excluded)
        flags = others if flags is None else flags & others
    return Stack(jax.lax.optimization_barrier(jnp.stack(leaves)), flags)


def whole(array: jax.Array) -> Region:
    """The region that is the whole array."""
    return Region(array.shape, (0,) * array.ndim, array.shape, _sharding(array))


def zero_like(leaves: Sequence[jax.Array]) -> jax.Array:
    """A uint32 zero that varies over the mesh axes that any of the leaves varies over.

    Inside ``shard_map`` a loop must start from a state that varies as its results do.
    """
    varying = sorted(frozenset().union(*map(varying_axes, leaves)), key=str)
    zero = jnp.uint32(0)
    return jax.lax.pcast(zero, tuple(varying), to="varying") if varying else zero


def varying_axes(leaf: jax.Array) -> frozenset[Any]:
    """The mesh axes of an enclosing ``shard_map`` that an array varies over."""
    return frozenset(jax.typeof(leaf).manual_axis_type.varying)


def precedes(stack: Stack, bound: Wide) -> Callable[[Region], jax.Array]:
    """Tests which entries of a stack have a flat index in their leaf below its bound.

    Args:
      stack: the stack of k leaves.
      bound: k numbers, at most the size of a leaf.
    """
    size = math.prod(stack.values.shape[1:])

    def test(region: Region) -> jax.Array:
        shape = region.shape[1:]
        trailing = _uint64.row_size(shape)

        def positions(axis: int) -> jax.Array:
            return jax.lax.broadcasted_iota(
                jnp.uint32, region.block, axis, out_sharding=region.sharding
            )

        row = column = jnp.zeros_like(positions(0))
        for axis in range(len(shape)):
            stride = math.prod(shape[axis + 1 :])
            position = positions(axis + 1)
            position = position + jnp.asarray(region.start[axis + 1]).astype(jnp.uint32)
            if stride < trailing:
                column = column + position * np.uint32(stride)
            else:
                row = row + position * np.uint32(stride // trailing)
        if trailing == size:
            return column < bound.low.reshape(-1, *[1] * len(shape))
        giant = Wide(bound.high[0], bound.low[0])  # It is alone in its stack.
        quotient, rest = _uint64.divide(giant, trailing)
        return (row < quotient.low) | ((row == quotient.low) & (column < rest))

    return test


def count(stack: Stack, test: Callable[..., Any], number: int) -> list[Wide]:
    """Counts, for up to three tests at once, the entries of each leaf that pass.

    Args:
      stack: k leaves.
      test: a function of a block of values, the same block of ``eligible`` or None,
        and its `Region`, to ``number`` bool arrays of the block's shape.
      number: how many counts one pass makes; three share a uint32.

    Returns:
      For each test k counts.
    """
    leaf = stack.values
    arrays = (leaf,) if stack.eligible is None else (leaf, stack.eligible)

    def passing(blocks: Sequence[jax.Array], region: Region) -> list[jax.Array]:
        return test(blocks[0], blocks[1] if len(blocks) > 1 else None, region)

    def summed(counts: jax.Array) -> Wide:
        if leaf.size // len(leaf) < 2**31:
            n = jnp.sum(counts, axis=range(1, counts.ndim), dtype=jnp.uint32)
            return Wide(jnp.zeros_like(n), n)
        axes = _beyond_a_word(leaf.size, counts.shape)
        total = _uint64.total(jnp.sum(counts, axis=axes, dtype=jnp.int32))
        return Wide(total.high[None], total.low[None])

    def fused(*arrays: jax.Array) -> list[Wide]:
        return [summed(passed) for passed in passing(arrays, whole(arrays[0]))]

    layout = _layout(leaf)
    if layout is None:
        return fused(*arrays)

    def sliced(*arrays: jax.Array) -> list[Wide]:
        counts = _count_in_slices(arrays, layout, passing, number)
        return [summed(c) for c in counts]

    return jax.lax.platform_dependent(*arrays, cpu=sliced, default=fused)


def count_true(leaves: Sequence[jax.Array]) -> Wide:
    """Counts the True entries of each bool leaf."""
    if _checks.on_host(leaves):
        return _uint64.wide([int(np.count_nonzero(leaf)) for leaf in leaves])
    return _count_true(list(leaves))


@jax.jit
def _count_true(leaves: list[jax.Array]) -> Wide:
    rows, stacks = partition(leaves)
    counts = []
    if rows:
        counts.append(_packing.count_true([leaves[i] for i in rows]))
    # Stacked, masks that are cut along different axes would be gathered.
    alone = [[i] for members in stacks for i in members]
    for (i,) in alone:
        counts += count(stack([leaves[i]]), lambda block, *_: [block], 1)
    return in_order(counts, [rows, *alone] if rows else alone)


def in_order(counts: Sequence[Wide], positions: Sequence[Sequence[int]]) -> Wide:
    """Joins the counts of parts into one vector in the order of the leaves."""
    order = np.argsort(np.concatenate([np.asarray(p) for p in positions]))
    return jax.tree.map(lambda *words: jnp.concatenate(words)[order], *counts)


def _beyond_a_word(size: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes to sum first: none of those sums of ``size`` entries passes 31 bits.

    As few sums as can be are left, as devices exchange them.
    """
    every = range(len(shape))
    left = [c for n in every for c in itertools.combinations(every, n)] + [(*every,)]
    lengths = {axes: math.prod(shape[i] for i in axes) for axes in left}
    safe = [axes for axes in left if size // lengths[axes] < 2**31] or [(*every,)]
    fewest = min(safe, key=lambda axes: lengths[axes])
    return tuple(axis for axis in every if axis not in fewest)


def _layout(leaf: jax.Array) -> tuple[tuple[int, ...], int] | None:
    """Chooses a shape to walk a leaf in, and the axis of it to walk along.

    The longest axis of d entries is split into (g, d / g), and the inner part walked.
    Device boundaries may cut the outer part only, so g is a multiple of 8 if d is, of
    more if d is long or the mesh large, and of the shards where an Explicit mesh tells
    their number.
    """
    if leaf.size < _SMALL:
        return None
    shape, folded = leaf.shape, leaf.ndim == 2
    if folded:  # A vector is folded into rows; the leading axis is the stack's.
        even = math.gcd(shape[1], 8)
        row = next((row for row in _ROWS if shape[1] % (even * row) == 0), 1)
        shape = (shape[0], shape[1] // row, row)
    axis = 1 + int(np.argmax(shape[1:-1]))
    if shape[axis] < 8 * _SHORTEST < shape[-1]:
        axis = len(shape) - 1
    shards = _shards(leaf, 1 if folded else axis)
    outer = math.lcm(shards, math.gcd(shape[axis], 8))
    if shape[axis] % outer:
        outer = shards
    most = most_shards(leaf)
    while shape[axis] % (2 * outer) == 0:
        if shape[axis] // (2 * outer) < (_SHORTEST if outer < most else _WALKED):
            break
        outer *= 2
    inner = shape[axis] // outer
    if inner < _SHORTEST:
        return None
    return (*shape[:axis], outer, inner, *shape[axis + 1 :]), axis + 1


def _shards(leaf: jax.Array, axis: int) -> int:
    """How many shards an axis is cut into, where its type says so."""
    names = spec_of(leaf)[axis]
    names = names if isinstance(names, tuple) else (names,)
    mesh = jax.typeof(leaf).sharding.mesh
    return math.prod(mesh.shape[name] for name in names if isinstance(name, str))


def _sharding(array: jax.Array) -> Any:
    """How an array is cut, where its type says so: on Explicit meshes only."""
    sharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def _count_in_slices(
    arrays: Sequence[jax.Array],
    layout: tuple[tuple[int, ...], int],
    passing: Callable[[Sequence[jax.Array], Region], list[jax.Array]],
    number: int,
) -> list[jax.Array]:
    """Sums the tests along one axis, a slice at a time, packed into one uint32."""
    shape, axis = layout
    arrays = [array.reshape(shape) for array in arrays]
    length = shape[axis]
    width = next((w for w in range(_SLICE, 2, -1) if length % w == 0), _SLICE)

    def counts_at(start: Any, width: int) -> list[jax.Array]:
        # Without the barrier XLA widens all of a bfloat16 array ahead of the loop.
        held, start = jax.lax.optimization_barrier((arrays, start))
        blocks = [jax.lax.dynamic_slice_in_dim(a, start, width, axis) for a in held]
        starts = (0,) * axis + (start,) + (0,) * (len(shape) - axis - 1)
        passed = passing(
            blocks, Region(shape, starts, blocks[0].shape, _sharding(blocks[0]))
        )
        packed = functools.reduce(
            jnp.bitwise_or,
            [
                p.astype(jnp.uint32) << np.uint32(_FIELD * j)
                for j, p in enumerate(passed)
            ],
        )
        packed = jnp.sum(packed, axis=axis, dtype=jnp.uint32)
        field = np.uint32((1 << _FIELD) - 1)
        return [
            ((packed >> np.uint32(_FIELD * j)) & field).astype(jnp.int32)
            for j in range(len(passed))
        ]

    def add(sums: list[jax.Array], start: Any, width: int) -> list[jax.Array]:
        return [s + c for s, c in zip(sums, counts_at(start, width), strict=True)]

    row = jax.lax.index_in_dim(arrays[0], 0, axis, keepdims=False)
    sums = [jnp.zeros_like(row, dtype=jnp.int32) for _ in range(number)]
    full, rest = divmod(length, width)
    sums = jax.lax.fori_loop(0, full, lambda i, s: add(s, i * width, width), sums)
    return add(sums, full * width, rest) if rest else sums
