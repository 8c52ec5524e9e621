"""Masks as files, with one bit per weight.

Each leaf is a tensor of its bits in C order, the first in the highest bit of a byte.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Mask
from jaxprune.core import _checks
from jaxprune.io import _archive, _leaves

_FORMAT = "jaxprune.mask 2"


def save_mask(path: str | os.PathLike[str], mask: Any) -> None:
    """Writes a mask to one file, with one bit per weight.

    The file is written under a temporary name, flushed, and then renamed, so ``path``
    is never half written. It is in the safetensors format.

    Args:
      path: the file to write; an existing file is replaced.
      mask: a tree of bool, ``True`` = kept.

    Returns:
      None.

    Raises:
      TypeError: if a leaf is not bool.
      ValueError: if there are no leaves, two of them share a path, or one is spread
        over several hosts. The message names the leaf.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, os, tempfile
      >>> params = {"w": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> mask = jp.global_mask(jp.magnitude(params), 0.5)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "mask.safetensors")
      ...     jp.save_mask(path, mask)
      ...     again = jp.load_mask(path, params)
      >>> again["w"]
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """
    if not jax.tree.leaves(mask):
        raise ValueError("mask has no leaves, so there is nothing to write.")
    _checks.check_mask(mask, mask)
    names = _checks.leaf_paths(mask)
    _leaves.check_paths(names, "mask")
    facts, tensors = [], {}
    for name, leaf in zip(names, jax.tree.leaves(mask), strict=True):
        facts.append({"path": name, "shape": list(np.shape(leaf))})
        tensors[name] = _leaves.pack(_leaves.to_host(name, leaf))
    _archive.write(Path(path), _FORMAT, {"leaves": facts}, tensors)


def load_mask(path: str | os.PathLike[str], params: Any) -> Mask:
    """Reads a mask and verifies the whole file.

    Args:
      path: a file that `save_mask` wrote.
      params: the parameters of the mask: arrays, or ``jax.ShapeDtypeStruct`` with or
        without shardings.

    Returns:
      A mask with the structure, shapes and shardings of ``params``, on the default
      device where ``params`` have no sharding.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if the file is truncated, altered, or of another kind, or if its
        paths or shapes differ from those of ``params``. The message names the leaf.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, os, tempfile
      >>> mask = {"w": jnp.array([True, False, True])}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "mask.safetensors")
      ...     jp.save_mask(path, mask)
      ...     jp.load_mask(path, {"w": jax.ShapeDtypeStruct((3,), jnp.float32)})
      {'w': Array([ True, False,  True], dtype=bool)}
    """
    specification, tensors = _archive.read(Path(path), _FORMAT, "save_mask")
    found = {leaf["path"]: tuple(leaf["shape"]) for leaf in specification["leaves"]}
    names = _checks.leaf_paths(params)
    _leaves.check_same_paths(names, found, path)
    masks = []
    for name, like in zip(names, jax.tree.leaves(params), strict=True):
        shape = found[name]
        if tuple(np.shape(like)) != shape:
            raise ValueError(
                f"The leaf {name} of {path} is {shape}, but in params it is "
                f"{tuple(np.shape(like))}. Pass the parameters of this mask."
            )
        masks.append(_placed(_leaves.unpack(tensors[name], shape), like))
    return jax.tree.unflatten(jax.tree.structure(params), masks)


def _placed(mask: np.ndarray, like: Any) -> jax.Array:
    """Gives a mask the sharding of a leaf; each host places its own part."""
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return jnp.asarray(mask)
    return jax.make_array_from_callback(mask.shape, sharding, lambda i: mask[i])
