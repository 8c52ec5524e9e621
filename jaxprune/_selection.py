"""The best `keep` scores of a tree, found by counting: no sort, no gather, no copy.

The threshold is built two bits at a time, from the top, in the unsigned integers that
order the floats: each round counts, in one pass over the leaves where they lie, how
many scores reach each of three candidates. Counts are the only thing that leaves a
device, so on sharded leaves a round is one all-reduce of a few words. If more scores
equal the threshold than there is room for, a second search of the same kind over flat
indices keeps the first of them in leaf order.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _counting, _wide
from jaxprune._counting import Stack
from jaxprune._precision import precision_of
from jaxprune._wide import Wide

_MAX = Wide(np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFF))


def select(
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
    with precision_of(leaves):
        dtype = _common_dtype(leaves)
        stacks = _counting.stacked([leaf.astype(dtype) for leaf in leaves], eligible)
        key, above, at = _threshold(stacks, keep, dtype)
        value, lowest = _from_key(key, dtype), _below_infinity(key, dtype)

        def is_tied(x: jax.Array) -> jax.Array:
            return jnp.where(lowest, x != x, x == value)

        room = _wide.saturating_subtract(keep, above)
        choose = _wide.less(room, _wide.subtract(at, above))

        def all_tied(x: jax.Array) -> jax.Array:
            return jnp.where(lowest, jnp.bool_(True), x >= value)

        # Outside of the branch, whose constants vmap inside shard_map cannot take.
        bound = _tie_bound(stacks, is_tied, room, choose)
        tests = [_counting.precedes(stack, bound) for stack in stacks]

        def some_tied(x: jax.Array, test: Callable[..., jax.Array]) -> jax.Array:
            above = jnp.where(lowest, x == x, x > value)
            return above | (is_tied(x) & test(_counting.whole(x)))

        def among(mask: jax.Array, stack: Stack) -> jax.Array:
            return mask if stack.eligible is None else mask & stack.eligible

        masks = jax.lax.cond(
            choose,
            lambda: [
                among(some_tied(stack.scores, test), stack)
                for stack, test in zip(stacks, tests, strict=True)
            ],
            lambda: [among(all_tied(stack.scores), stack) for stack in stacks],
        )
        return _counting.unstacked(masks, stacks)


def _common_dtype(leaves: Sequence[jax.Array]) -> Any:
    dtypes = {leaf.dtype for leaf in leaves}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    if np.dtype(np.float64) in dtypes:
        return np.dtype(np.float64)
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 16 else dtype


def _threshold(
    stacks: Sequence[Stack], keep: Wide, dtype: Any
) -> tuple[jax.Array, Wide, Wide]:
    """Finds the largest key that at least ``keep`` eligible scores reach.

    Returns the key, how many scores lie above it, and how many reach it (the largest
    number there is where that was not counted).
    """
    unsigned = _unsigned(dtype)
    zero = _counting.zero_like(stacks)

    def round_(i: Any, state: tuple[Any, Wide, Wide]) -> tuple[Any, Wide, Wide]:
        key, above, at = state
        shift = (jnp.finfo(dtype).bits - 2 - 2 * i).astype(unsigned)
        keys = [key + (unsigned.type(j) << shift) for j in (1, 2, 3)]
        values = [_from_key(k, dtype) for k in keys]
        counts = _counting.count(
            stacks, [lambda x, _: [x >= v for v in values]] * len(stacks), 3
        )
        for candidate, n in zip(keys, counts, strict=True):
            below = _below_infinity(candidate, dtype)
            reached = below | ~_wide.less(n, keep)
            at = _wide.where(reached & ~below, n, at)
            key = jnp.where(reached, candidate, key)
        for candidate, n in reversed(list(zip(keys, counts, strict=True))):
            above = _wide.where(candidate > key, n, above)
        return key, above, at

    state = (
        zero.astype(unsigned),
        Wide(zero, zero),
        Wide(zero + _MAX.high, zero + _MAX.low),
    )
    rounds = jnp.finfo(dtype).bits // 2
    return jax.lax.fori_loop(0, rounds, round_, state)


def _tie_bound(
    stacks: Sequence[Stack],
    is_tied: Callable[[jax.Array], jax.Array],
    room: Wide,
    choose: jax.Array,
) -> Wide:
    """Finds the flat index before which exactly ``room`` tied scores lie.

    Without a choice to make no pass is run. The search ends as soon as a candidate
    counts right, which for a few ties is after a few rounds.
    """
    size = sum(stack.scores.size for stack in stacks)
    zero = _counting.zero_like(stacks)

    def pending(state: tuple[Any, Wide]) -> Any:
        shift, _ = state
        return choose & (shift >= 0)

    def round_(state: tuple[Any, Wide]) -> tuple[Any, Wide]:
        # Fewer than `room` ties lie before `start`; the bound is beyond it.
        shift, start = state
        unit = _power_of_two(shift)
        bounds = [_wide.add(start, unit)]
        bounds += [_wide.add(bounds[-1], unit)]
        bounds += [_wide.add(bounds[-1], unit)]

        def test(stack: Stack) -> Callable[..., list[jax.Array]]:
            tests = [_counting.precedes(stack, bound) for bound in bounds]
            return lambda x, region: [is_tied(x) & before(region) for before in tests]

        counts = _counting.count(stacks, [test(stack) for stack in stacks], 3)
        found = jnp.bool_(False)
        for bound, n in zip(bounds, counts, strict=True):
            start = _wide.where(_wide.less(n, room), bound, start)
            exact = ~found & (n.high == room.high) & (n.low == room.low)
            start = _wide.where(exact, _wide.subtract(bound, _wide.wide(1)), start)
            found = found | exact
        return jnp.where(found, -1, shift - 2).astype(jnp.int32), start

    top = max(size.bit_length() - 1, 0) & ~1
    shift = jnp.int32(top) + zero.astype(jnp.int32)
    _, start = jax.lax.while_loop(pending, round_, (shift, Wide(zero, zero)))
    return _wide.where(choose, _wide.add(start, _wide.wide(1)), _wide.wide(size))


def _power_of_two(exponent: Any) -> Wide:
    low = exponent.astype(jnp.uint32)
    one = jnp.uint32(1)
    return Wide(
        jnp.where(exponent >= 32, one << (low & 31), jnp.uint32(0)),
        jnp.where(exponent >= 32, jnp.uint32(0), one << (low & 31)),
    )


def _unsigned(dtype: Any) -> Any:
    return np.dtype(f"uint{jnp.finfo(dtype).bits}")


def _from_key(key: jax.Array, dtype: Any) -> jax.Array:
    """Maps an unsigned integer to the float of the same rank."""
    top = _unsigned(dtype).type(1 << (jnp.finfo(dtype).bits - 1))
    bits = jnp.where(key >= top, key ^ top, ~key)
    return jax.lax.bitcast_convert_type(bits, dtype)


def _below_infinity(key: jax.Array, dtype: Any) -> jax.Array:
    """Tells whether a key ranks below -inf: the place of the NaNs."""
    infinity = np.asarray(math.inf, dtype).view(_unsigned(dtype))
    top = 1 << (jnp.finfo(dtype).bits - 1)
    return key < _unsigned(dtype).type(top - 1 - int(infinity))
