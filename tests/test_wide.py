"""Two-word arithmetic against Python's own integers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.core import _uint64


def _numbers(seed, bits, count=40):
    rng = np.random.default_rng(seed)
    return [
        int(x) >> int(rng.integers(0, bits)) for x in rng.integers(0, 2**bits, count)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_arithmetic_is_that_of_integers(seed):
    for a, b in zip(_numbers(seed, 62), _numbers(seed + 9, 62), strict=True):
        wide_a, wide_b = _uint64.wide(a), _uint64.wide(b)
        assert _uint64.to_int(_uint64.add(wide_a, wide_b)) == a + b
        assert bool(_uint64.less(wide_a, wide_b)) == (a < b)
        assert _uint64.to_int(_uint64.minimum(wide_a, wide_b)) == min(a, b)
        difference = _uint64.saturating_subtract(wide_a, wide_b)
        assert _uint64.to_int(difference) == max(a - b, 0)


@pytest.mark.parametrize("seed", range(3))
def test_division_is_that_of_integers(seed):
    divide = jax.jit(_uint64.divide, static_argnums=1)
    for a, d in zip(_numbers(seed, 62, 6), _numbers(seed + 9, 32, 6), strict=True):
        quotient, rest = divide(_uint64.wide(a), max(d, 1))
        assert (_uint64.to_int(quotient), int(rest)) == divmod(a, max(d, 1))


@pytest.mark.parametrize("shape", [(), (7,), (3, 500), (2, 3, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_totals_pass_32_bits(shape, seed):
    counts = np.random.default_rng(seed).integers(0, 2**31 - 1, shape).astype(np.int32)
    total = _uint64.to_int(_uint64.total(jnp.asarray(counts)))
    assert total == int(counts.astype(object).sum())


@pytest.mark.parametrize(
    "size", [1, 10, 2**24 + 1, 2**31 + 7, 2**40 + 12345, 2**61 + 3]
)
def test_a_float32_fraction_is_multiplied_exactly(size):
    scaled = jax.jit(_uint64.scaled, static_argnums=1)
    scaled_words = jax.jit(_uint64.scaled)  # The size is traced as well.
    rng = np.random.default_rng(size % 2**32)
    corners = [0.0, 1.0, 0.5, 0.25, 2.0**-24, 1 - 2.0**-24, 1e-38, 1e-45]
    for fraction in np.float32([*corners, *rng.random(40), *rng.random(10) ** 20]):
        expected = round(Fraction(float(fraction)) * size)
        assert _uint64.to_int(scaled(fraction, size)) == expected
        assert _uint64.to_int(scaled_words(fraction, _uint64.wide(size))) == expected


@pytest.mark.parametrize(
    ("fraction", "expected"), [(-0.5, 0), (1.5, 8), (np.nan, 0), (np.inf, 8)]
)
def test_a_fraction_outside_its_range_counts_as_the_nearer_end(fraction, expected):
    assert _uint64.to_int(_uint64.scaled(jnp.float32(fraction), 8)) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 4), 12), ((2**16, 2**16), 2**16), ((80, 8192, 28672), 8192 * 28672)],
)
def test_rows_fit_one_word(shape, expected):
    assert _uint64.row_size(shape) == expected
