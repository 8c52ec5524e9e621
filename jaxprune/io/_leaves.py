"""Leaves as tensors of a file: dense, a bitmask and values, or two of every four.

Layout ``dense``: the tensor ``PATH``. With a mask also ``PATH::mask``: one bit per
weight in C order, the first in the highest bit of a byte (``numpy.packbits``).

Layout ``bitmask``: ``PATH::mask``, and ``PATH::values``, the entries whose bit is 1 in
C order. Without a mask the bits mark the entries that are not +0, so -0.0 and NaN are
values.

Layout ``2:4``: ``PATH::values`` has the leaf's shape with ``axis`` halved, and holds
the two entries kept of every four along it, in order. ``PATH::indices`` holds two bits
per value, its place among the four, packed like a mask.
"""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MASK, _VALUES, _INDICES = "::mask", "::values", "::indices"
_WORTHWHILE = 256  # Bytes saved; a tensor's entry in the header takes about as much.


def check_paths(names: list[str], tree: str) -> None:
    """Raises if two tensors of the leaves would have the same name."""
    endings = ("", _MASK, _VALUES, _INDICES)
    every = Counter(name + ending for name in names for ending in endings)
    for name in names:
        if every[name] > 1:
            raise ValueError(
                f"{tree} has more than one leaf with the path {name}, or one whose "
                "path ends like a part of it (::mask, ::values, ::indices). Rename one."
            )


def check_same_paths(names: list[str], found: Any, path: Any) -> None:
    """Raises unless a file has the leaves of ``params``, naming one that is missing.

    Args:
      names: the paths of ``params``.
      found: the paths in the file, or a dict by them.
      path: the file.
    """
    for name in [*names, *found]:
        if name not in found or name not in names:
            has, lacks = ("params", path) if name in names else (path, "params")
            raise ValueError(f"{has} has a leaf {name}, which {lacks} lacks.")


def to_host(name: str, leaf: Any) -> np.ndarray:
    """Returns a leaf as a NumPy array; raises if `from_host` could not restore it.

    A PRNG key becomes its key data.
    """
    dtype = getattr(leaf, "dtype", None)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(
            f"The leaf {name} is spread over several hosts. Gather it first "
            "(jax.experimental.multihost_utils.process_allgather)."
        )
    if is_key(dtype) and isinstance(jax.random.key_impl(leaf), str):
        return np.asarray(jax.random.key_data(leaf))
    known = dtype is not None and (
        jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)
    )
    if not known or not np.dtype(dtype).isnative:
        kind = f"a {type(leaf).__name__}" if dtype is None else dtype
        raise TypeError(
            f"The leaf {name} is {kind}, not an array of one of JAX's dtypes. Convert "
            "it, or split it off."
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise TypeError(
            f"The leaf {name} is {dtype}, which JAX would load as "
            f"{jax.dtypes.canonicalize_dtype(dtype)}. Convert it, or set "
            "jax_enable_x64."
        )
    return np.asarray(leaf)


def from_host(name: str, data: np.ndarray, impl: str | None = None) -> jax.Array:
    """The inverse of `to_host`; ``impl`` is the implementation of a PRNG key."""
    if jax.dtypes.canonicalize_dtype(data.dtype) != data.dtype:
        raise ValueError(
            f"The leaf {name} is {data.dtype}: set jax_enable_x64 to load it."
        )
    if impl is not None:
        return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
    return jnp.asarray(data)


def is_key(dtype: Any) -> bool:
    """Tells whether a dtype is that of PRNG keys."""
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def encode(
    name: str, data: np.ndarray, mask: np.ndarray | None = None, compress: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Chooses the layout of a leaf.

    Args:
      name: the leaf's path.
      data: the entries; +0 where ``mask`` is False.
      mask: a mask of the same shape, or None.
      compress: whether to consider sparse layouts.

    Returns:
      The layout, as `decode` reads it, and a dict from names to tensors.
    """
    kept = is_set(data) if mask is None else mask
    masked = {} if mask is None else {name + _MASK: pack(mask)}
    values = int(kept.sum()) * data.itemsize
    saved = data.nbytes - values - (-(-data.size // 8) if mask is None else 0)
    facts = {"layout": "dense", "shape": list(data.shape)}
    if not compress or saved < _WORTHWHILE:
        return facts, {name: data} | masked
    axis = _two_of_four(kept)
    if axis is not None:
        tensors = _halved(name, data, kept, axis)
        return {**facts, "layout": "2:4", "axis": axis}, tensors
    tensors = {name + _MASK: pack(kept), name + _VALUES: data[kept]}
    return {**facts, "layout": "bitmask"}, tensors


def decode(
    name: str, facts: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The inverse of `encode`: the entries, and the mask if there is one."""
    shape = tuple(facts["shape"])
    mask = tensors.get(name + _MASK)
    mask = None if mask is None else unpack(mask, shape)
    if facts["layout"] == "dense":
        return tensors[name], mask
    values = tensors[name + _VALUES]
    data = np.zeros(shape, values.dtype)
    if mask is not None:
        data[mask] = values
        return data, mask
    bits = np.unpackbits(tensors[name + _INDICES], count=2 * values.size)
    place = (2 * bits[::2] + bits[1::2]).reshape(values.shape)
    axis, mask = facts["axis"], np.zeros(shape, bool)
    group = np.arange(values.shape[axis]) // 2 * 4
    group = group.reshape(-1, *[1] * (values.ndim - axis - 1))
    np.put_along_axis(data, group + place, values, axis)
    np.put_along_axis(mask, group + place, True, axis)
    return data, mask


def is_set(data: np.ndarray) -> np.ndarray:
    """Marks the entries that are not +0: those with a bit that is set."""
    word = np.dtype(f"u{min(data.itemsize, 8)}")
    words = np.ascontiguousarray(data).reshape(-1).view(word)
    words = words.reshape(*data.shape, data.itemsize // word.itemsize)
    return np.asarray((words != 0).any(-1))


def pack(mask: np.ndarray) -> np.ndarray:
    """Packs a mask into one bit per weight."""
    return np.packbits(mask.ravel())


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.unpackbits(bits, count=size).astype(bool).reshape(shape)


def _two_of_four(kept: np.ndarray) -> int | None:
    """The first axis along which exactly two of every four entries are kept."""
    if 2 * int(kept.sum()) != kept.size:
        return None
    for axis, length in enumerate(kept.shape):
        if length % 4 == 0:
            before, after = kept.shape[:axis], kept.shape[axis + 1 :]
            groups = kept.reshape(*before, -1, 4, *after)
            if (groups.sum(axis + 1) == 2).all():
                return axis
    return None


def _halved(
    name: str, data: np.ndarray, kept: np.ndarray, axis: int
) -> dict[str, np.ndarray]:
    moved, marks = np.moveaxis(data, axis, -1), np.moveaxis(kept, axis, -1)
    halved = (*moved.shape[:-1], moved.shape[-1] // 2)
    place = np.nonzero(marks)[-1] % 4
    values = np.moveaxis(moved[marks].reshape(halved), -1, axis)
    place = np.moveaxis(place.reshape(halved), -1, axis).ravel()
    bits = np.stack([place >> 1, place & 1], -1)
    return {name + _VALUES: values, name + _INDICES: np.packbits(bits.astype(bool))}
