"""Integers up to 2**64 as two uint32 words, so that counts are exact without x64.

Counts and flat indices pass 32 bits in trees of more than 2**31 weights, and JAX has
64-bit integers only while x64 is enabled. int64 inside ``jax.enable_x64(True)`` does
work under ``jit``, ``vmap``, ``grad``, ``scan``, ``cond``, ``shard_map`` and ``pmap``,
on Auto and Explicit meshes, and compiles for TPUs (jax 0.10.2 and 0.12). It fails where
a count crosses the edge of the context, and JAX rarely warns:

- A NumPy count that enters a jitted function or a ``scan`` outside the context is read
  as 32 bits: ``2**33 + 5`` arrives as another number.
- Arithmetic and comparisons outside it cast to int32: ``count > 5`` is False for 2**33.
- A context wide enough to hold them would hold the user's score functions too, which
  would then compute in float64 (the rounds of `jaxprune.iterative_mask`).

Such errors appear only in trees too large for a test. Two words need no context.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_U32 = jnp.uint32
_DIGIT = 12  # Bits summed at a time: axes of up to 2**20 cannot overflow a uint32.


class Wide(NamedTuple):
    """The number ``high * 2**32 + low``; both words are uint32, of one shape."""

    high: Any
    low: Any


def wide(value: int | Sequence[int]) -> Wide:
    """Splits Python ints in [0, 2**64) into two words each."""
    words = np.asarray(value, np.uint64)
    low = words & np.uint64(0xFFFFFFFF)
    return Wide((words >> np.uint64(32)).astype(np.uint32), low.astype(np.uint32))


def stacked(numbers: Sequence[Wide]) -> Wide:
    """Stacks numbers into two vectors of words, in NumPy if all are known."""
    known = not any(isinstance(w, jax.Array) for number in numbers for w in number)
    return jax.tree.map(lambda *words: (np if known else jnp).stack(words), *numbers)


def to_int(number: Wide) -> int:
    """Reads two concrete words as a Python int."""
    return (int(number.high) << 32) | int(number.low)


def to_float(number: Wide) -> Any:
    """Rounds to float32."""
    high, low = (jnp.asarray(word).astype(jnp.float32) for word in number)
    return high * jnp.float32(2.0**32) + low


def add(a: Wide, b: Wide) -> Wide:
    """Returns a + b."""
    low = jnp.add(a.low, b.low)
    return Wide(jnp.add(a.high, b.high) + (low < b.low).astype(_U32), low)


def subtract(a: Wide, b: Wide) -> Wide:
    """Returns a - b, for a >= b."""
    borrow = jnp.less(a.low, b.low).astype(_U32)
    return Wide(jnp.subtract(a.high, b.high) - borrow, jnp.subtract(a.low, b.low))


def less(a: Wide, b: Wide) -> Any:
    """Returns whether a < b."""
    below = jnp.less(a.low, b.low)
    return jnp.less(a.high, b.high) | (jnp.equal(a.high, b.high) & below)


def where(condition: Any, a: Wide, b: Wide) -> Wide:
    """Returns a where the condition holds, else b."""
    return Wide(
        jnp.where(condition, jnp.asarray(a.high), jnp.asarray(b.high)),
        jnp.where(condition, jnp.asarray(a.low), jnp.asarray(b.low)),
    )


def minimum(a: Wide, b: Wide) -> Wide:
    """Returns the smaller of two numbers."""
    return where(less(b, a), b, a)


def saturating_subtract(a: Wide, b: Wide) -> Wide:
    """Returns max(a - b, 0)."""
    return where(less(a, b), wide(0), subtract(a, b))


def sum_of(numbers: Wide) -> Wide:
    """Sums a vector of fewer than 2**16 numbers, exactly."""
    return _carried(jnp.sum(_digits(numbers), axis=1, dtype=_U32))


def sums_before(numbers: Wide) -> Wide:
    """Returns the exclusive cumulative sum of fewer than 2**16 numbers."""
    until = _carried(jnp.cumsum(_digits(numbers), axis=1, dtype=_U32))
    return subtract(until, numbers)


def _digits(numbers: Wide) -> jax.Array:
    """Splits numbers into four rows of 16 bits, lowest first: sums cannot overflow."""
    low, high = numbers.low, numbers.high
    return jnp.stack([low & 0xFFFF, low >> 16, high & 0xFFFF, high >> 16])


def _carried(digits: jax.Array) -> Wide:
    sums = list(digits)
    for i in range(3):
        sums[i + 1] = sums[i + 1] + (sums[i] >> 16)
        sums[i] = sums[i] & 0xFFFF
    return Wide((sums[3] << 16) | sums[2], (sums[1] << 16) | sums[0])


def total(counts: jax.Array) -> Wide:
    """Sums an array of int32 counts exactly, whatever its size.

    Every axis is summed in two digits with a carry between them, so no partial sum
    passes 32 bits. Axes may be up to 2**20 long and the total up to 2**44.
    """
    low = (counts & ((1 << _DIGIT) - 1)).astype(_U32)
    high = jax.lax.shift_right_logical(counts, jnp.int32(_DIGIT)).astype(_U32)
    for _ in range(counts.ndim):
        low = jnp.sum(low, axis=-1, dtype=_U32)
        high = jnp.sum(high, axis=-1, dtype=_U32) + (low >> _DIGIT)
        low = low & ((1 << _DIGIT) - 1)
    return Wide(high >> (32 - _DIGIT), (high << _DIGIT) | low)


def divide(a: Wide, divisor: int) -> tuple[Wide, Any]:
    """Divides by a Python int in [1, 2**32): the quotient and the uint32 remainder.

    Schoolbook division in base 2, one bit of ``a`` at a time.
    """
    d = np.uint32(divisor)

    def step(i: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        high, low, rest = carry
        overflow = rest >> 31
        rest = (rest << 1) | (high >> 31)
        high, low = (high << 1) | (low >> 31), low << 1
        fits = (overflow == 1) | (rest >= d)
        return high, low | fits.astype(_U32), jnp.where(fits, rest - d, rest)

    high, low = jnp.asarray(a.high), jnp.asarray(a.low)
    high, low, rest = jax.lax.fori_loop(0, 64, step, (high, low, high ^ high))
    return Wide(high, low), rest


def scaled(fraction: Any, size: int | Wide) -> Wide:
    """Rounds ``fraction * size`` half to even, exactly, for a float32 in [0, 1].

    A float32 is a rational number m / 2**q with m < 2**24, which is multiplied by
    ``size`` < 2**62 in 16-bit limbs. Traced fractions are clipped to [0, 1], and NaN
    counts as 0.
    """
    if isinstance(size, int):
        if not 0 <= size < 2**62:
            raise ValueError(f"Trees of up to 2**62 weights are supported; got {size}.")
        size = wide(size)
    fraction = jnp.asarray(fraction).astype(jnp.float32)
    fraction = jnp.where(fraction > 0, jnp.minimum(fraction, jnp.float32(1)), 0)
    bits = jax.lax.bitcast_convert_type(fraction.astype(jnp.float32), _U32)
    exponent = (bits >> 23).astype(jnp.int32)
    mantissa = (bits & 0x7FFFFF) | jnp.where(exponent > 0, _U32(0x800000), _U32(0))
    shift = 150 - jnp.maximum(exponent, 1)  # fraction = mantissa / 2**shift
    limbs = _multiply(mantissa, size)
    # Beyond the product's 96 bits every quotient is 0, and so is its rounding bit.
    shift = jnp.minimum(shift, 16 * len(limbs))
    limbs = jnp.stack([*limbs, *[jnp.zeros_like(limbs[0])] * (len(limbs) + 1)])

    def word(start: Any) -> Any:  # 16 bits of the product, from bit `start` on.
        index, offset = start >> 4, (start & 15).astype(_U32)
        pair = limbs[index] | (limbs[index + 1] << 16)
        return (pair >> offset) & 0xFFFF

    low = word(shift) | (word(shift + 16) << 16)
    high = word(shift + 32) | (word(shift + 48) << 16)
    half = word(shift - 1) & 1
    position = 16 * jnp.arange(limbs.shape[0], dtype=jnp.int32)
    below = jnp.clip(shift - 1 - position, 0, 16).astype(_U32)
    sticky = jnp.any((limbs & ((_U32(1) << below) - 1)) != 0)
    up = (half == 1) & (sticky | ((low & 1) == 1))
    return add(Wide(high, low), Wide(jnp.zeros_like(high), up.astype(_U32)))


def _multiply(mantissa: Any, size: Wide) -> list[Any]:
    """Multiplies a 24-bit number by two words; returns six 16-bit limbs."""
    parts = [mantissa & 0xFFFF, mantissa >> 16]
    words = size.low, size.high
    digits = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    limbs = [jnp.zeros_like(mantissa) for _ in range(6)]
    for i, part in enumerate(parts):
        for j, digit in enumerate(digits):
            product = part * digit
            limbs[i + j] = limbs[i + j] + (product & 0xFFFF)
            limbs[i + j + 1] = limbs[i + j + 1] + (product >> 16)
    for i in range(5):
        limbs[i + 1] = limbs[i + 1] + (limbs[i] >> 16)
        limbs[i] = limbs[i] & 0xFFFF
    return limbs


def row_size(shape: tuple[int, ...]) -> int:
    """Returns the largest product of trailing dimensions that fits in one word."""
    size = 1
    for dim in reversed(shape):
        if size * dim >= 2**32:
            break
        size *= dim
    return size if size else math.prod(shape)
