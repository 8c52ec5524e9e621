"""Models as files that can be used without this library: a function and its weights.

A folder holds two files. ``model.safetensors`` has the leaves, in the layouts of
`jaxprune.io._leaves`; its specification has the SHA-256 of the other file.
``model.export`` is the function without weights, serialized by ``jax.export``.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxprune.core import _checks
from jaxprune.io import _archive, _leaves
from jaxprune.masks._threshold import apply_mask

_FORMAT = "jaxprune.model 2"
_WEIGHTS, _FUNCTION = "model.safetensors", "model.export"


class Model(NamedTuple):
    """A model that `load_model` read.

    Attributes:
      fn: ``fn(params, *inputs)``, for the shapes and platforms that were saved.
      params: a dict from paths to arrays.
      mask: a dict from paths to bool arrays, or None if it was saved without one.
    """

    fn: Callable[..., Any]
    params: dict[str, jax.Array]
    mask: dict[str, jax.Array] | None


def save_model(
    folder: str | os.PathLike[str],
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    mask: Any = None,
    platforms: Sequence[str] | None = None,
    compress: bool = True,
) -> None:
    """Writes a function and its parameters, sparse or shrunk, for serving.

    The folder can be read without the model's code and without this library: the
    weights are safetensors, and ``jax.export.deserialize`` reads the function, which
    takes a dict from paths to arrays. This needs the optional package ``flatbuffers``
    (``pip install jaxprune[deploy]``).

    A sparse leaf is stored as a bitmask and its remaining values, or, if exactly two of
    every four are kept along an axis, as values and two-bit indices, where that saves
    space; the remaining leaves are ordinary tensors. `load_model` returns every leaf
    bit for bit. The page "Serve a sparse or a shrunk model" documents the layouts.

    Args:
      folder: the folder to write, created if necessary. Its two files are replaced,
        each of them atomically.
      fn: ``fn(params, *inputs)``, any traceable function, such as a model in eval mode
        or the small function of `structured.shrink`.
      params: any pytree of arrays, PRNG keys excepted.
      *inputs: arrays or ``jax.ShapeDtypeStruct``; only shapes and dtypes are read. A
        dimension may be symbolic (``jax.export.symbolic_shape``), except for a shrunk
        function, whose replay needs numbers.
      mask: a mask like ``params``, which is applied and stored. None stores the
        parameters unchanged.
      platforms: the platforms to compile for, such as ``("cpu", "tpu")``; the current
        one by default.
      compress: False stores every leaf as one ordinary tensor, for tools that do not
        know the sparse layouts.

    Returns:
      None.

    Raises:
      ImportError: if ``flatbuffers`` is not installed.
      ValueError: if ``mask`` does not match ``params``, two leaves share a path, or a
        leaf is spread over several hosts.
      TypeError: if the mask is not bool, or a leaf could not be loaded again: a PRNG
        key, or a 64-bit NumPy array while JAX is set to 32 bits. The message names it.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, tempfile
      >>> params = {"w": jnp.array([[1.0], [2.0], [3.0]])}
      >>> mask = jp.global_mask(jp.magnitude(params), 0.34)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     x = jnp.ones((1, 3))
      ...     jp.save_model(folder, lambda p, x: x @ p["w"], params, x, mask=mask)
      ...     model = jp.load_model(folder)
      >>> model.fn(model.params, x)
      Array([[5.]], dtype=float32)
    """
    _checks.check_callable(fn, "fn", "fn(params, *inputs) -> outputs")
    if isinstance(platforms, str):
        raise TypeError(
            f"platforms must be a tuple of names, such as ('cpu', 'tpu'); got "
            f"{platforms!r}."
        )
    if mask is not None:
        params = apply_mask(params, mask)
    names = _checks.leaf_paths(params)
    _leaves.check_paths(names, "params")
    leaves, structure = jax.tree.flatten(params)
    masks = [None] * len(leaves) if mask is None else jax.tree.leaves(mask)
    facts, tensors = [], {}
    for name, leaf, kept in zip(names, leaves, masks, strict=True):
        if _leaves.is_key(getattr(leaf, "dtype", None)):
            raise TypeError(
                f"The leaf {name} is {leaf.dtype}, a PRNG key. Split it off, or store "
                "jax.random.key_data of it."
            )
        data = _leaves.to_host(name, leaf)
        if kept is not None:
            kept = np.asarray(kept)
            if _leaves.is_set(data)[~kept].any():
                raise TypeError(
                    f"The leaf {name} is {leaf.dtype}, a dtype without 0, so its mask "
                    "must keep all of it."
                )
        layout, parts = _leaves.encode(name, data, kept, compress)
        facts.append({"path": name, **layout})
        tensors |= parts
    function = _exported(fn, names, leaves, structure, inputs, platforms)
    specification = {
        "leaves": facts,
        "masked": mask is not None,
        "function": _archive.digest(function),
    }
    # The weights come last: they name the function that they belong to.
    Path(folder).mkdir(parents=True, exist_ok=True)
    _archive.replace(Path(folder) / _FUNCTION, [function])
    _archive.write(Path(folder) / _WEIGHTS, _FORMAT, specification, tensors)


def load_model(folder: str | os.PathLike[str]) -> Model:
    """Reads a model that `save_model` wrote, and verifies all of it.

    The function and every tensor must match their digests, the tensors must have the
    shapes and dtypes that the function takes, and every pruned weight must be 0.

    Args:
      folder: the folder.

    Returns:
      A `Model`. Its ``fn`` runs on the platforms that it was saved for, jitted or not;
      it has no derivative.

    Raises:
      ImportError: if ``flatbuffers`` is not installed.
      FileNotFoundError: if a file does not exist.
      ValueError: if a file is truncated, altered, or of another kind; if the two files
        belong to different models; if a pruned weight is not 0; or if a leaf needs
        ``jax_enable_x64``.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jp.save_model(folder, lambda p, x: p * x, jnp.ones(3), jnp.ones(3))
      ...     model = jp.load_model(folder)
      >>> model.fn(model.params, jnp.array([1.0, 2.0, 3.0]))
      Array([1., 2., 3.], dtype=float32)
    """
    weights, function = Path(folder) / _WEIGHTS, Path(folder) / _FUNCTION
    specification, tensors = _archive.read(weights, _FORMAT, "save_model")
    serialized = function.read_bytes()
    if _archive.digest(serialized) != specification["function"]:
        raise ValueError(
            f"{function} is truncated, altered, or belongs to another model than "
            f"{weights}. Save the model again."
        )
    exported = jax.export.deserialize(bytearray(serialized))
    params, mask = {}, {}
    for facts in specification["leaves"]:
        name = facts["path"]
        data, kept = _leaves.decode(name, facts, tensors)
        params[name] = _leaves.from_host(name, data)
        if not specification["masked"] or kept is None:
            continue
        mask[name] = jnp.asarray(kept)
        if _leaves.is_set(data)[~kept].any():
            raise ValueError(
                f"The tensor {name} of {weights} has pruned weights that are not 0. "
                "Apply the mask, and save the model again."
            )
    # A dict's leaves come in the order of their names, ahead of the inputs.
    for name, asked in zip(sorted(params), exported.in_avals, strict=False):
        got = params[name]
        if (tuple(asked.shape), asked.dtype) != (got.shape, got.dtype):
            raise ValueError(
                f"The tensor {name} of {weights} is {got.dtype}{list(got.shape)}, but "
                f"{function} takes {asked.dtype}{list(asked.shape)}."
            )
    return Model(exported.call, params, mask if specification["masked"] else None)


def _exported(
    fn: Callable[..., Any],
    names: list[str],
    leaves: list[Any],
    structure: Any,
    inputs: Sequence[Any],
    platforms: Sequence[str] | None,
) -> bytes:
    """Serializes the function of a dict from paths to arrays, and of the inputs."""

    def by_path(tensors: dict[str, jax.Array], *inputs: Any) -> Any:
        return fn(jax.tree.unflatten(structure, [tensors[n] for n in names]), *inputs)

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    exported = jax.export.export(jax.jit(by_path), platforms=platforms)(
        dict(zip(names, shapes, strict=True)), *inputs
    )
    try:
        return bytes(exported.serialize())
    except KeyError as error:
        raise TypeError(
            f"jax.export cannot store a function that takes or returns {error}. "
            "Convert such leaves."
        ) from error
