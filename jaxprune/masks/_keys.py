"""Order-preserving unsigned integers for floats, so a threshold is found bit by bit.

Key 0 marks an entry that is not eligible and key 1 a NaN. All numbers have larger keys,
from -inf on, and -0.0 has the key of 0.0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ABSENT, NAN = 0, 1


def common_dtype(leaves: Any) -> Any:
    """Returns the float dtype, of 16 bits or more, that holds all leaves exactly."""
    dtypes = {np.dtype(leaf.dtype) for leaf in leaves}
    if np.dtype(np.float64) in dtypes:
        return np.dtype(np.float64)
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 16 else dtype


def bits_of(dtype: Any) -> int:
    """Returns the number of bits of a float dtype, and so of its keys."""
    return int(jnp.finfo(dtype).bits)


def to_keys(values: jax.Array, eligible: jax.Array | None) -> jax.Array:
    """Maps floats to keys; entries that are not eligible become `ABSENT`."""
    pattern = jax.lax.bitcast_convert_type(values, jnp.dtype(f"uint{_bits(values)}"))
    keys = _ordered(jnp, pattern, values.dtype)
    return keys if eligible is None else jnp.where(eligible, keys, keys.dtype.type(0))


def to_host_keys(values: np.ndarray, eligible: np.ndarray | None) -> np.ndarray:
    """`to_keys` for NumPy arrays, which compiles nothing."""
    pattern = np.ascontiguousarray(values).view(f"uint{_bits(values)}")
    keys = _ordered(np, pattern, values.dtype)
    return keys if eligible is None else np.where(eligible, keys, keys.dtype.type(0))


def _ordered(numpy: Any, pattern: Any, dtype: Any) -> Any:
    """Converts sign and magnitude to two's complement, then flips the sign bit.

    All of it is unsigned: TPUs do not compile signed 64-bit patterns of floats.
    """
    bits = bits_of(dtype)
    unsigned = pattern.dtype.type
    top = unsigned(2 ** (bits - 1))
    infinity = np.asarray(np.inf, dtype).view(f"uint{bits}")[()]
    negative = pattern >> unsigned(bits - 1)  # 0 or 1.
    magnitude = pattern & (top - unsigned(1))
    ordered = (magnitude ^ (unsigned(0) - negative)) + negative
    return numpy.where(magnitude > infinity, unsigned(NAN), ordered ^ top)


def _bits(values: Any) -> int:
    return bits_of(values.dtype)
