"""Models as files that need no code of ours: a function beside its safetensors.

A folder holds two files. ``model.safetensors`` has the leaves, pruned weights exactly
0, in the layouts of `jaxprune.io._leaves`; its specification has the SHA-256 of the
other file. ``model.export`` is the function, by ``jax.export``, without any weights.
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
      fn: ``fn(params, *inputs)``, compiled for the shapes and platforms it was saved
        for.
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
    """Writes a function and its parameters, sparse or shrunk, to be served elsewhere.

    The folder can be read without the model's code and without this library: the
    weights are safetensors, and the function is what ``jax.export.deserialize`` takes.
    It is called with a dict from paths to arrays. The optional package ``flatbuffers``
    is needed (``pip install jaxprune[deploy]``).

    A sparse leaf is stored as a bitmask and its remaining values, or, if exactly two of
    every four are kept along an axis, as values and two-bit indices, where that saves
    space; the other leaves are ordinary tensors. `load_model` returns every leaf bit
    for bit. The layouts are documented in "Serve a sparse or a shrunk model".

    Args:
      folder: where to; made if it is not there. Its two files are replaced, each whole
        or not at all.
      fn: ``fn(params, *inputs)``, any traceable function, such as a model in eval mode
        or the small function of `structured.shrink`.
      params: any pytree of arrays, PRNG keys excepted.
      *inputs: arrays, or ``jax.ShapeDtypeStruct``, of which shapes and types are read;
        a dimension may be symbolic (``jax.export.symbolic_shape``), except of a shrunk
        function, whose replay needs numbers.
      mask: a mask like ``params``; it is applied, and stored. None stores the
        parameters as they are.
      platforms: what to compile for, such as ``("cpu", "tpu")``; by default the one in
        use.
      compress: False stores every leaf as one ordinary tensor, for tools that know
        nothing of the sparse layouts.

    Returns:
      None.

    Raises:
      ImportError: if ``flatbuffers`` is not installed.
      ValueError: if ``mask`` does not match ``params``, two leaves share a path, or a
        leaf is in part on other hosts.
      TypeError: if the mask is not bool, or a leaf is of a type that could not be
        loaded again, naming it: a PRNG key, or NumPy's 64-bit types while JAX is set to
        32 bits.

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
                    f"The leaf {name} is {leaf.dtype}, a type without 0, so its mask "
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
    """Reads what `save_model` wrote, and verifies all of it before anything is used.

    The function and every tensor must have the bytes that they were saved with, the
    tensors the shapes and types that the function takes, and every weight that the mask
    prunes must be exactly 0.

    Args:
      folder: where it is.

    Returns:
      A `Model`. Its ``fn`` may be called, jitted or not, on the platforms it was saved
      for; it has no derivative.

    Raises:
      ImportError: if ``flatbuffers`` is not installed.
      FileNotFoundError: if a file is not there.
      ValueError: if a file is truncated, altered, of another kind, or of another model
        than its neighbor; if a pruned weight is not 0, naming the leaf; or if JAX is
        set to types too narrow for a leaf.

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
            f"{function} is truncated, altered, or of another model than {weights}. "
            "Save both again."
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
                f"The tensor {name} of {weights} has weights that its mask prunes and "
                "that are not 0. Apply the mask, and save again."
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
    """The function of a dict from paths to arrays, and of the inputs, serialized."""

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
