"""Masks in NumPy, for concrete values on one CPU device.

Nothing is compiled, so the first mask takes no longer than the second.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.core import _checks, _uint64
from jaxprune.core._placement import placed
from jaxprune.core._uint64 import Wide
from jaxprune.masks import _keys


def can_rank(leaves: Any, keep: Wide, eligible: Any) -> bool:
    """Returns whether a selection can be made on the host."""
    return _checks.on_host((leaves, keep, eligible))


def keep(mask: Any, value: Any) -> Any:
    """Returns the value where the mask is True, else 0."""
    values = np.asarray(value)
    return placed([value], [np.where(mask, values, values.dtype.type(0))])[0]


def best_of_all(
    leaves: Sequence[Any], keep: Wide, eligible: Sequence[Any] | None, min_keep: int
) -> list[jax.Array]:
    """Marks the ``keep`` largest entries of all leaves, ``min_keep`` in each leaf."""
    keys = _host_keys(leaves, eligible)
    flat = np.concatenate([leaf.reshape(1, -1) for leaf in keys], axis=1)
    ends = np.cumsum([leaf.size for leaf in keys])[:-1]
    mask = np.zeros(flat.shape, bool)
    if min_keep:
        floor = [_best(leaf, min_keep) for leaf in np.split(flat, ends, axis=1)]
        mask = np.concatenate(floor, axis=1)
        flat = np.where(mask, flat.dtype.type(_keys.ABSENT), flat)
    mask |= _best(flat, max(_uint64.to_int(keep) - int(mask.sum()), 0))
    return placed(leaves, np.split(mask, ends, axis=1))


def best_of_each(
    leaves: Sequence[Any], keep: Wide, eligible: Sequence[Any] | None
) -> list[jax.Array]:
    """Marks the largest entries of each leaf, up to the leaf's count."""
    keys = _host_keys(leaves, eligible)
    counts = [
        _uint64.to_int(Wide(*words))
        for words in zip(*map(np.asarray, keep), strict=True)
    ]
    chosen = [_best(k.reshape(1, -1), n) for k, n in zip(keys, counts, strict=True)]
    return placed(leaves, chosen)


def _host_keys(
    leaves: Sequence[Any], eligible: Sequence[Any] | None
) -> list[np.ndarray]:
    dtype = _keys.common_dtype(leaves)
    flags = [None] * len(leaves) if eligible is None else map(np.asarray, eligible)
    return [
        _keys.to_host_keys(np.asarray(leaf).astype(dtype, copy=False), flag)
        for leaf, flag in zip(leaves, flags, strict=True)
    ]


def best_of_rows(matrix: Any, keep: Wide) -> jax.Array:
    """Marks the ``keep`` largest entries of every row of a matrix."""
    (keys,) = _host_keys([matrix], None)
    return placed([matrix], [_best(keys, _uint64.to_int(keep))])[0]


def _best(keys: np.ndarray, keep: int) -> np.ndarray:
    """Marks the ``keep`` largest present keys of each row; the first of equal ones."""
    cut = keys.shape[1] - keep
    if cut <= 0:
        return keys != _keys.ABSENT
    if not keep:
        return np.zeros(keys.shape, bool)
    key = np.partition(keys, cut, axis=1)[:, cut, None]
    above, tied = keys > key, keys == key
    room = keep - np.count_nonzero(above, axis=1)
    if np.any(np.count_nonzero(tied, axis=1) > room):
        tied &= np.cumsum(tied, axis=1) <= room[:, None]
    return (above | tied) & (keys != _keys.ABSENT)
