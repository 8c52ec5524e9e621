"""Shrunk models as files: parameters with the specification to rebuild the function.

The specification of the archive (`jaxprune.io._archive`) holds ``mean_width`` and, for
every leaf, its path, its dtype, its shapes before and after, and the kept positions
along each narrowed axis.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core import _checks
from jaxprune.io import _archive
from jaxprune.structured._groups import Group, check_arrays
from jaxprune.structured._narrow import narrow, removed_positions, sharded_like
from jaxprune.structured._shrink import check_mean_width, small_function

_FORMAT = "jaxprune.structured 1"


def save(
    path: str | os.PathLike[str],
    params: Any,
    mask: Any,
    groups: Sequence[Group],
    *,
    mean_width: str = "old",
) -> None:
    """Writes the parameters of a shrunk model, and the removed positions, to one file.

    The file is written under a temporary name, flushed, and then renamed, so ``path``
    is never half written. `load` rebuilds the small function from the file, the full
    function and the shapes of the full parameters.

    Args:
      path: the file to write; an existing file is replaced.
      params: the small parameters, from `shrink`, before or after further training: any
        pytree of arrays of any dtype, PRNG keys included.
      mask: the mask that was passed to `shrink`.
      groups: the groups that were passed to `shrink`.
      mean_width: "old" or "new", as passed to `shrink`; `load` reads it.

    Returns:
      None.

    Raises:
      TypeError: if a leaf of ``params`` is not an array, or ``mask`` is not bool.
      ValueError: if ``params`` do not have the shapes that ``mask`` and ``groups``
        leave (the message names the leaf); if two leaves share a path; if a leaf is
        spread over several hosts; or if ``mean_width`` is neither "old" nor "new".

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, os, tempfile
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"v": jnp.ones((4, 2)), "w": jnp.ones((8, 4))}
      >>> groups = jp.structured.channel_groups(apply_fn, params, jnp.ones((10, 8)))
      >>> keep = jnp.arange(4) < 3
      >>> mask = {"v": jnp.tile(keep[:, None], 2), "w": jnp.tile(keep, (8, 1))}
      >>> _, small_params = jp.structured.shrink(apply_fn, params, mask, groups)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "small.npz")
      ...     jp.structured.save(path, small_params, mask, groups)
      ...     small_fn, again = jp.structured.load(path, apply_fn, params)
      >>> jax.tree.map(jnp.shape, again)
      {'v': (3, 2), 'w': (8, 3)}
    """
    check_arrays(params)
    check_mean_width(mean_width)
    removed = removed_positions(mask, mask, groups)
    _checks.check_like(params, narrow(mask, mask, groups), "params", "what mask leaves")
    names = _checks.leaf_paths(params)
    _archive.check_paths(names, "params")
    leaves = []
    for name, leaf, full in zip(
        names, jax.tree.leaves(params), jax.tree.leaves(mask), strict=True
    ):
        kept = {
            str(axis): np.flatnonzero(~gone).tolist()
            for (path_, axis), gone in removed.items()
            if path_ == name
        }
        fact = {
            "path": name,
            "dtype": str(leaf.dtype),
            "impl": jax.random.key_impl(leaf) if _is_key(leaf.dtype) else None,
            "shape": list(leaf.shape),
            "full_shape": list(full.shape),
            "kept": kept,
        }
        leaves.append((fact, _data(name, leaf)))
    specification = {"format": _FORMAT, "mean_width": mean_width}
    _archive.write(Path(path), specification, leaves)


def load(
    path: str | os.PathLike[str], fn: Callable[..., Any], params: Any
) -> tuple[Callable[..., Any], Any]:
    """Reads a shrunk model: returns the small function and its parameters.

    The file is checked against its digests, and its leaves against ``params``, before
    anything is returned. There is no partial load.

    Args:
      path: a file that `save` wrote.
      fn: the full function that was passed to `shrink`.
      params: the full parameters, arrays or ``jax.ShapeDtypeStruct``
        (``jax.eval_shape`` of the initializer). Only their structure, shapes and dtypes
        are read.

    Returns:
      ``(small_fn, small_params)``, as from `shrink`. The parameters have the structure
      and dtypes of ``params``. They are sharded like ``params`` where the smaller sizes
      still divide, and placed on the default device if ``params`` have no sharding.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if the file is truncated, altered, or not written by `save`; if the
        paths, full shapes or dtypes of its leaves differ from ``params`` (the message
        names the leaf); or if it has 64-bit leaves and x64 is off.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, os, tempfile
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"v": jnp.ones((4, 2)), "w": jnp.ones((8, 4))}
      >>> groups = jp.structured.channel_groups(apply_fn, params, jnp.ones((10, 8)))
      >>> mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "small.npz")
      ...     jp.structured.save(path, params, mask, groups)
      ...     shapes = jax.eval_shape(lambda: params)  # In a new process, say.
      ...     small_fn, small_params = jp.structured.load(path, apply_fn, shapes)
      >>> small_fn(small_params, jnp.ones((1, 8)))
      Array([[32., 32.]], dtype=float32)
    """
    check_arrays(params)
    mean_width, leaves = _read(Path(path))
    found = {leaf["path"]: (leaf, data) for leaf, data in leaves}
    names = _checks.leaf_paths(params)
    _archive.check_same_paths(names, found, path)
    small, removed = [], {}
    for name, full in zip(names, jax.tree.leaves(params), strict=True):
        leaf, data = found[name]
        for asked, was, what in (
            (tuple(full.shape), tuple(leaf["full_shape"]), "was"),
            (str(full.dtype), leaf["dtype"], "is"),
        ):
            if asked != was:
                raise ValueError(
                    f"The leaf {name} of {path} {what} {was}, but in params it is "
                    f"{asked}. Pass the full parameters, with the dtypes of the file."
                )
        small.append(sharded_like(_array(leaf, data), full))
        for axis, kept in leaf["kept"].items():
            gone = np.ones(full.shape[int(axis)], bool)
            gone[kept] = False
            removed[name, int(axis)] = gone
    small_params = jax.tree.unflatten(jax.tree.structure(params), small)
    return small_function(fn, params, small_params, removed, mean_width), small_params


def _data(name: str, leaf: Any) -> np.ndarray:
    """A leaf's data in a dtype that NumPy can write; the data of a PRNG key."""
    _archive.check_here(name, leaf)
    if _is_key(leaf.dtype):
        leaf = jax.random.key_data(leaf)
    data = np.asarray(leaf, order="C")
    return data if data.dtype.isbuiltin == 1 else data.view(_unsigned(data.dtype))


def _array(leaf: dict[str, Any], data: np.ndarray) -> jax.Array:
    """The inverse of `_data`."""
    if leaf["impl"]:
        return jax.random.wrap_key_data(jnp.asarray(data), impl=leaf["impl"])
    wanted = jnp.dtype(leaf["dtype"])
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"The leaf {leaf['path']} is {wanted}: set jax_enable_x64 to load it."
        )
    return jnp.asarray(data if wanted.isbuiltin == 1 else data.view(wanted))


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"uint{8 * dtype.itemsize}")


def _read(path: Path) -> tuple[str, list[tuple[dict[str, Any], np.ndarray]]]:
    """Reads and verifies a file: ``mean_width``, and facts and data of every leaf."""
    specification, leaves = _archive.read(path, _FORMAT, "save")
    for leaf, data in leaves:
        shape = data.shape[: len(leaf["shape"])] if leaf["impl"] else data.shape
        if list(shape) != leaf["shape"]:
            raise _archive.altered(path, "save", leaf["path"])
    return specification["mean_width"], leaves
