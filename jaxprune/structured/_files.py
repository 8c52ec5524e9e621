"""Shrunk models as files: parameters with the specification to rebuild the function.

The specification of the archive (`jaxprune.io._archive`) holds ``mean_width`` and, for
every leaf, its layout (`jaxprune.io._leaves`), its path, its dtype, its full shape, and
the kept positions along each narrowed axis.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.core import _checks
from jaxprune.io import _archive, _leaves
from jaxprune.structured._groups import Group, check_arrays
from jaxprune.structured._narrow import narrow, removed_positions, sharded_like
from jaxprune.structured._shrink import check_mean_width, small_function

_FORMAT = "jaxprune.structured 2"


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
      TypeError: if a leaf of ``params`` is not an array or could not be loaded again,
        such as a 64-bit NumPy array while JAX is set to 32 bits, or ``mask`` is not
        bool.
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
      ...     path = os.path.join(folder, "small.safetensors")
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
    _leaves.check_paths(names, "params")
    facts, tensors = [], {}
    for name, leaf, full in zip(
        names, jax.tree.leaves(params), jax.tree.leaves(mask), strict=True
    ):
        kept = {
            str(axis): np.flatnonzero(~gone).tolist()
            for (path_, axis), gone in removed.items()
            if path_ == name
        }
        layout, parts = _leaves.encode(name, _leaves.to_host(name, leaf))
        tensors |= parts
        fact = {
            "path": name,
            "dtype": str(leaf.dtype),
            "impl": jax.random.key_impl(leaf) if _leaves.is_key(leaf.dtype) else None,
            "full_shape": list(full.shape),
            "kept": kept,
        }
        facts.append({**layout, **fact})
    specification = {"mean_width": mean_width, "leaves": facts}
    _archive.write(Path(path), _FORMAT, specification, tensors)


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
      ...     path = os.path.join(folder, "small.safetensors")
      ...     jp.structured.save(path, params, mask, groups)
      ...     shapes = jax.eval_shape(lambda: params)  # In a new process, say.
      ...     small_fn, small_params = jp.structured.load(path, apply_fn, shapes)
      >>> small_fn(small_params, jnp.ones((1, 8)))
      Array([[32., 32.]], dtype=float32)
    """
    check_arrays(params)
    specification, tensors = _archive.read(Path(path), _FORMAT, "save")
    found = {leaf["path"]: leaf for leaf in specification["leaves"]}
    names = _checks.leaf_paths(params)
    _leaves.check_same_paths(names, found, path)
    small, removed = [], {}
    for name, full in zip(names, jax.tree.leaves(params), strict=True):
        leaf = found[name]
        for asked, was, what in (
            (tuple(full.shape), tuple(leaf["full_shape"]), "was"),
            (str(full.dtype), leaf["dtype"], "is"),
        ):
            if asked != was:
                raise ValueError(
                    f"The leaf {name} of {path} {what} {was}, but in params it is "
                    f"{asked}. Pass the full parameters, with the dtypes of the file."
                )
        data, _ = _leaves.decode(name, leaf, tensors)
        array = _leaves.from_host(name, data, leaf["impl"])
        small.append(sharded_like(array, full))
        for axis, kept in leaf["kept"].items():
            gone = np.ones(full.shape[int(axis)], bool)
            gone[kept] = False
            removed[name, int(axis)] = gone
    small_params = jax.tree.unflatten(jax.tree.structure(params), small)
    small_fn = small_function(
        fn, params, small_params, removed, specification["mean_width"]
    )
    return small_fn, small_params
