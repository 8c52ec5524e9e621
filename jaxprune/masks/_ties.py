"""Which ties are kept in leaves that are stacked where they are.

A leaf keeps its entries above the threshold, and the first of its ties in flat order.
Where they end is searched for by counting, in all leaves at once.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core import _uint64
from jaxprune.core._uint64 import Wide
from jaxprune.masks import _counting, _keys
from jaxprune.masks._counting import Region, Stack


def first_excluded(
    parts: Sequence[Any],
    positions: Sequence[list[int]],
    key: jax.Array,
    ties: Wide,
    room: Wide,
) -> list[Wide]:
    """Finds for each stacked leaf the flat index before which its ties are kept.

    Only the leaves that can take some of their ties and not all are searched, all in
    one loop that ends when every candidate has counted right.
    """
    pairs = [
        (part, np.asarray(members))
        for part, members in zip(parts, positions, strict=True)
        if isinstance(part, Stack)
    ]
    if not pairs:
        return []
    sizes = [part.values.size // len(part.values) for part, _ in pairs]
    keys = [key[members] for _, members in pairs]
    rooms = [at(room, members) for _, members in pairs]
    searched = [
        _uint64.less(n, at(ties, members)) & ((n.high | n.low) != 0)
        for n, (_, members) in zip(rooms, pairs, strict=True)
    ]

    def pending(state: tuple[Any, list[Any]]) -> Any:
        shift, leaves = state
        undone = [jnp.any(done < 1) for _, done in leaves]
        return (shift >= 0) & jnp.any(jnp.stack(undone))

    def round_(state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        # Fewer than `room` ties lie before `start`; the bound is beyond it.
        shift, leaves = state
        unit = _power_of_two(shift)
        after = []
        for (part, _), own, room, (start, done), size in zip(
            pairs, keys, rooms, leaves, sizes, strict=True
        ):
            bounds = [_uint64.add(start, unit)]
            bounds += [_uint64.add(bounds[-1], unit)]
            bounds += [_uint64.add(bounds[-1], unit)]
            capped = [_uint64.minimum(bound, _uint64.wide(size)) for bound in bounds]
            before = [_counting.precedes(part, bound) for bound in capped]

            def test(block: Any, eligible: Any, region: Region, own=own, before=before):
                found = tied(block, eligible, own)
                return [found & test(region) for test in before]

            counts = _counting.count(part, test, 3)
            open_ = done < 1
            for bound, n in zip(bounds, counts, strict=True):
                short = open_ & _uint64.less(n, room)
                start = _uint64.where(short, bound, start)
                exact = open_ & (n.high == room.high) & (n.low == room.low)
                start = _uint64.where(
                    exact, _uint64.subtract(bound, _uint64.wide(1)), start
                )
                done = jnp.where(exact, 1, done)
                open_ = open_ & ~exact
            after.append((start, done))
        return shift - 2, after

    top = max(max(size.bit_length() - 1 for size in sizes), 0) & ~1
    zeros = [(own ^ own).astype(jnp.uint32) for own in keys]
    state = (
        jnp.int32(top),
        [
            (Wide(zero, zero), jnp.where(search, 0, 1) + zero.astype(jnp.int32))
            for zero, search in zip(zeros, searched, strict=True)
        ],
    )
    _, found = jax.lax.while_loop(pending, round_, state)
    bounds = []
    for (start, _), search, n, size in zip(found, searched, rooms, sizes, strict=True):
        none = (n.high | n.low) == 0
        full = _uint64.where(none, _uint64.wide(0), _uint64.wide(size))
        bounds.append(_uint64.where(search, _uint64.add(start, _uint64.wide(1)), full))
    return bounds


def marked(stack: Stack, key: jax.Array, bound: Wide) -> jax.Array:
    """Marks entries above the key, and ties with it before the bound."""
    values, eligible = stack
    keys = _keys.to_keys(values, eligible)
    before = _counting.precedes(stack, bound)(_counting.whole(values))
    return (keys > along(key, keys)) | (tied(values, eligible, key) & before)


def tied(block: jax.Array, eligible: Any, key: jax.Array) -> jax.Array:
    keys = _keys.to_keys(block, eligible)
    return (keys == along(key, keys)) & (keys != _keys.ABSENT)


def along(vector: jax.Array, keys: jax.Array) -> jax.Array:
    """Lays a vector with an entry per leaf along the leading axis of a stack."""
    return vector.reshape(-1, *[1] * (keys.ndim - 1))


def at(numbers: Wide, members: Any) -> Wide:
    """The entries of a vector at some positions."""
    return jax.tree.map(lambda word: word[np.asarray(members)], numbers)


def _power_of_two(exponent: Any) -> Wide:
    low = exponent.astype(jnp.uint32)
    one = jnp.uint32(1)
    return Wide(
        jnp.where(exponent >= 32, one << (low & 31), jnp.uint32(0)),
        jnp.where(exponent >= 32, jnp.uint32(0), one << (low & 31)),
    )
