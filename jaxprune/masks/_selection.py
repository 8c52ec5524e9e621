"""The largest entries of a tree or of each of its leaves, found by counting.

The threshold is built two bits at a time, from the top, in the unsigned integers that
order the floats: each round counts, in one pass, how many scores reach each of three
candidates. There is one threshold for all leaves, or one for each: the same program
with a vector of 1 or n thresholds. Leaves that devices share stay where they are, and a
round is one all-reduce of a few words; the others are packed into one matrix. If more
scores equal a threshold than there is room for, the first of them in leaf order stay.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core import _uint64
from jaxprune.core._dtypes import precision_of
from jaxprune.core._uint64 import Wide
from jaxprune.masks import _counting, _keys, _packing
from jaxprune.masks._counting import Region, Stack
from jaxprune.masks._ties import along, at, first_excluded, marked, tied


def best_of_all(
    leaves: Sequence[jax.Array],
    keep: Wide,
    eligible: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
    """Marks the ``keep`` largest entries of all leaves together, exactly.

    Ties go to the lower flat index in leaf order; -0.0 ties with 0.0; NaN ranks below
    -inf. ``keep`` at or above the number of eligible entries marks them all.

    Args:
      leaves: floating arrays of any shapes, dtypes and shardings, at least one.
      keep: how many to mark, as two words, static or traced.
      eligible: for each leaf a bool array of its shape: which entries take part.

    Returns:
      For each leaf a bool array of its shape.
    """
    every = sorted(frozenset().union(*map(_counting.varying_axes, leaves)), key=str)

    def varying(leaf: jax.Array) -> jax.Array:
        missing = [axis for axis in every if axis not in _counting.varying_axes(leaf)]
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    leaves = [varying(leaf) for leaf in leaves]
    if eligible is not None:
        eligible = [varying(leaf) for leaf in eligible]
    keep = jax.tree.map(lambda word: jnp.asarray(word)[None], keep)
    group = np.zeros(len(leaves), np.int32)
    return deal(mark(leaves, keep, eligible, group), leaves)


def best_of_each(
    leaves: Sequence[jax.Array],
    keep: Wide,
    eligible: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
    """Marks the largest entries of each leaf, the number that each leaf's count says.

    Args:
      leaves: as in `best_of_all`.
      keep: a vector with a count for every leaf, as two words.
      eligible: as in `best_of_all`.

    Returns:
      For each leaf a bool array of its shape.
    """

    def best(members: list[int]) -> list[jax.Array]:
        own = pick(leaves, members)
        counts = at(jax.tree.map(jnp.asarray, keep), members)
        flags = None if eligible is None else pick(eligible, members)
        return deal(mark(own, counts, flags, np.arange(len(members))), own)

    return apart(leaves, best)


def apart(
    leaves: Sequence[jax.Array], fn: Callable[[list[int]], list[Any]]
) -> list[Any]:
    """Applies ``fn`` to the positions of leaves that may share one matrix of rows.

    Inside ``shard_map``, leaves that vary over different mesh axes may not.
    """
    classes: dict[frozenset[Any], list[int]] = {}
    for i, leaf in enumerate(leaves):
        classes.setdefault(_counting.varying_axes(leaf), []).append(i)
    results: dict[int, Any] = {}
    for members in classes.values():
        results |= zip(members, fn(members), strict=True)
    return [results[i] for i in range(len(leaves))]


def mark(
    leaves: Sequence[jax.Array],
    keep: Wide,
    eligible: Sequence[jax.Array] | None,
    group: np.ndarray,
    *,
    excluded: Sequence[jax.Array] | None = None,
    of: Callable[[jax.Array], jax.Array] = lambda values: values,
) -> list[jax.Array]:
    """Marks in each group of leaves its largest entries, ``keep`` of them.

    Args:
      leaves: floating arrays.
      keep: a count for every group.
      eligible: which entries take part, or None for all.
      group: the group of each leaf: all in group 0, or each leaf in its own.
      excluded: which entries do not take part, or None.
      of: applied entry by entry to what is compared: ``jnp.abs`` for magnitudes. On
        packed leaves that is one kernel; applied by the caller it is one per shape.

    Returns:
      The marks as the leaves are partitioned: packed into rows and stacked; `deal`
      gives them back leaf by leaf.
    """
    with precision_of(leaves):
        dtype = _keys.common_dtype(leaves)
        packed, stacked = _counting.partition(leaves)
        positions = [packed] * bool(packed) + stacked
        parts: list[_packing.Rows | Stack] = []
        for members in positions:
            own = pick(leaves, members)
            used = None if eligible is None else pick(eligible, members)
            unused = None if excluded is None else pick(excluded, members)
            if members is packed:
                parts.append(_packing.pack(own, used, unused, dtype, of))
            else:
                own = [of(leaf.astype(dtype)) for leaf in own]
                parts.append(_counting.stack(own, used, unused))

        def count(per_part: Callable[[Any, np.ndarray], list[Wide]]) -> list[Wide]:
            """The counts of all parts, joined into vectors in the order of leaves."""
            counts = [
                per_part(part, np.asarray(members))
                for part, members in zip(parts, positions, strict=True)
            ]
            return [_counting.in_order(c, positions) for c in zip(*counts, strict=True)]

        key, above = _threshold(leaves, keep, count, group, dtype)
        (ties,) = count(lambda part, members: [_ties(part, key[group[members]])])
        room = _shares(_uint64.saturating_subtract(keep, above), ties, group)
        ends = iter(first_excluded(parts, positions, key[group], ties, room))
        marks = []
        for part, members in zip(parts, positions, strict=True):
            own = key[group[np.asarray(members)]]
            if isinstance(part, Stack):
                marks.append(marked(part, own, next(ends)))
            else:
                marks.append(_packing.choose(part, own, at(room, members)))
        return marks


def deal(parts: Sequence[jax.Array], leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Takes arrays like the result of `mark` apart into one for each leaf."""
    packed, stacked = _counting.partition(leaves)
    remaining = list(parts)
    dealt: dict[int, jax.Array] = {}
    if packed:
        unpacked = _packing.unpack(remaining.pop(0), pick(leaves, packed))
        dealt |= zip(packed, unpacked, strict=True)
    for members, part in zip(stacked, remaining, strict=True):
        dealt |= zip(members, part, strict=True)
    return [dealt[i] for i in range(len(leaves))]


def pick(arrays: Sequence[Any], members: Sequence[int]) -> list[Any]:
    """The arrays at some positions."""
    return [arrays[i] for i in members]


def _threshold(
    leaves: Sequence[jax.Array], keep: Wide, count: Any, group: np.ndarray, dtype: Any
) -> tuple[jax.Array, Wide]:
    """Finds each group's largest key that at least ``keep`` of its scores reach.

    Returns the keys, and how many scores lie above each.
    """
    bits = _keys.bits_of(dtype)
    unsigned = np.dtype(f"uint{bits}").type
    zero = jnp.broadcast_to(_counting.zero_like(leaves), keep.low.shape)

    def round_(i: Any, state: tuple[Any, Wide]) -> tuple[Any, Wide]:
        key, above = state
        shift = (bits - 2 - 2 * i).astype(unsigned)
        candidates = [key + (unsigned(j) << shift) for j in (1, 2, 3)]
        counts = count(
            lambda part, members: _reached(
                part, [c[group[members]] for c in candidates]
            )
        )
        totals = [_grouped(n, group) for n in counts]
        for candidate, n in zip(candidates, totals, strict=True):
            key = jnp.where(_uint64.less(n, keep), key, candidate)
        for candidate, n in reversed(list(zip(candidates, totals, strict=True))):
            above = _uint64.where(candidate > key, n, above)
        return key, above

    state = zero.astype(unsigned), Wide(zero, zero)
    return jax.lax.fori_loop(0, bits // 2, round_, state)


def _grouped(counts: Wide, group: np.ndarray) -> Wide:
    """Adds up the counts of the leaves of each group."""
    if not _is_one(group):
        return counts
    total = _uint64.sum_of(counts)
    return Wide(total.high[None], total.low[None])


def _shares(room: Wide, ties: Wide, group: np.ndarray) -> Wide:
    """Deals the room of each group to its leaves in order, to each at most its ties."""
    if not _is_one(group):
        return _uint64.minimum(room, ties)
    before = _uint64.sums_before(ties)
    return _uint64.minimum(_uint64.saturating_subtract(room, before), ties)


def _is_one(group: np.ndarray) -> bool:
    return not group.any()


def _reached(part: Any, candidates: Sequence[jax.Array]) -> list[Wide]:
    if not isinstance(part, Stack):
        return _packing.count_reached(part, candidates)

    def test(block: jax.Array, eligible: Any, region: Region) -> list[jax.Array]:
        del region
        keys = _keys.to_keys(block, eligible)
        return [keys >= along(c, keys) for c in candidates]

    return _counting.count(part, test, len(candidates))


def _ties(part: Any, key: jax.Array) -> Wide:
    if not isinstance(part, Stack):
        return _packing.count_equal(part, key)

    def test(block: jax.Array, eligible: Any, region: Region) -> list[jax.Array]:
        del region
        return [tied(block, eligible, key)]

    return _counting.count(part, test, 1)[0]
