"""Models as files that need no code of ours: a function beside its safetensors.

A folder holds two files. ``model.safetensors`` has one tensor a leaf, named by its
path, pruned weights exactly 0; of a mask also ``PATH::mask``, one bit a weight; and as
metadata a specification, JSON with the SHA-256 of every tensor and of the other file.
``model.export`` is the function, by ``jax.export``, without any weights.
"""

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxprune.core import _checks
from jaxprune.masks._threshold import apply_mask

_FORMAT = "jaxprune model 1"
_WEIGHTS, _FUNCTION = "model.safetensors", "model.export"
_DTYPES = {
    "BOOL": "bool",
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


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
) -> None:
    """Writes a function and its parameters, sparse or shrunk, to be served elsewhere.

    What reads the folder needs neither the model's code nor this library: the weights
    are safetensors, which most frameworks read, and the function is what
    ``jax.export.deserialize`` takes. It is called with a dict from paths to arrays.
    The optional package ``safetensors`` is needed (``pip install jaxprune[deploy]``).

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

    Returns:
      None.

    Raises:
      ImportError: if ``safetensors`` is not installed.
      ValueError: if ``mask`` does not match ``params``, or two leaves share a path.
      TypeError: if the mask is not bool, or a leaf is of a type that safetensors lack.

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
    from safetensors.numpy import save

    _checks.check_callable(fn, "fn", "fn(params, *inputs) -> outputs")
    if isinstance(platforms, str):
        raise TypeError(
            f"platforms must be a tuple of names, such as ('cpu', 'tpu'); got "
            f"{platforms!r}."
        )
    if mask is not None:
        params = apply_mask(params, mask)
    names = _checks.leaf_paths(params)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"params has more than one leaf with the path {repeated[0]}, so a file "
            "could not tell them apart. Rename one."
        )
    leaves, structure = jax.tree.flatten(params)
    for name, leaf in zip(names, leaves, strict=True):
        dtype = getattr(leaf, "dtype", f"a {type(leaf).__name__}")
        if str(dtype) not in _DTYPES.values():
            raise TypeError(
                f"The leaf {name} is {dtype}, which safetensors do not hold. "
                "Split it off, or convert it (jax.random.key_data for a key)."
            )

    def by_path(tensors: dict[str, jax.Array], *inputs: Any) -> Any:
        return fn(jax.tree.unflatten(structure, [tensors[n] for n in names]), *inputs)

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    exported = jax.export.export(jax.jit(by_path), platforms=platforms)(
        dict(zip(names, shapes, strict=True)), *inputs
    )
    function = bytes(exported.serialize())
    tensors = {n: np.asarray(leaf) for n, leaf in zip(names, leaves, strict=True)}
    if mask is not None:
        bits = [np.packbits(np.asarray(m).ravel()) for m in jax.tree.leaves(mask)]
        tensors |= {_mask_name(n): b for n, b in zip(names, bits, strict=True)}
    specification = {
        "format": _FORMAT,
        "leaves": names,
        "masked": mask is not None,
        "function": hashlib.sha256(function).hexdigest(),
        "tensors": {name: _digest(data) for name, data in tensors.items()},
    }
    # The weights come last: they name the function that they belong to.
    Path(folder).mkdir(parents=True, exist_ok=True)
    _replace(Path(folder) / _FUNCTION, function)
    metadata = {"jaxprune": json.dumps(specification)}
    tensors = {name: np.ascontiguousarray(data) for name, data in tensors.items()}
    _replace(Path(folder) / _WEIGHTS, save(tensors, metadata))


def load_model(folder: str | os.PathLike[str]) -> Model:
    """Reads what `save_model` wrote, and verifies all of it before anything is used.

    The function and every tensor must have the bytes that they were saved with, the
    tensors the shapes and types that the function takes, and every weight that the mask
    prunes must be exactly 0.

    Args:
      folder: where to.

    Returns:
      A `Model`. Its ``fn`` may be called, jitted or not, on the platforms it was saved
      for; it has no derivative.

    Raises:
      ImportError: if ``safetensors`` is not installed.
      FileNotFoundError: if a file is not there.
      ValueError: if a file is truncated, altered, of another kind, or of another model
        than its neighbour; or if a pruned weight is not 0, naming the leaf.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jp.save_model(folder, lambda p, x: p * x, jnp.ones(3), jnp.ones(3))
      ...     model = jp.load_model(folder)
      >>> model.fn(model.params, jnp.array([1.0, 2.0, 3.0]))
      Array([1., 2., 3.], dtype=float32)
    """
    weights, function = Path(folder) / _WEIGHTS, Path(folder) / _FUNCTION
    specification, tensors = _read(weights)
    serialized = function.read_bytes()
    if hashlib.sha256(serialized).hexdigest() != specification["function"]:
        raise ValueError(
            f"{function} is truncated, altered, or of another model than {weights}. "
            "Save both again."
        )
    for name, digest in specification["tensors"].items():
        if name not in tensors or _digest(tensors[name]) != digest:
            raise ValueError(
                f"{weights} was altered after save_model wrote it: the tensor {name} "
                "is not what its digest says."
            )
    exported = jax.export.deserialize(bytearray(serialized))
    names = specification["leaves"]
    params = {name: tensors[name] for name in names}
    # A dict's leaves come in the order of their names, ahead of the inputs.
    for name, asked in zip(sorted(names), exported.in_avals, strict=False):
        got = params[name]
        if (tuple(asked.shape), asked.dtype) != (got.shape, got.dtype):
            raise ValueError(
                f"The tensor {name} of {weights} is {got.dtype}{list(got.shape)}, but "
                f"{function} takes {asked.dtype}{list(asked.shape)}."
            )
    mask = None
    if specification["masked"]:
        mask = {n: _unpacked(tensors[_mask_name(n)], params[n]) for n in names}
        for name, kept in mask.items():
            if np.any(params[name][~kept] != 0):
                raise ValueError(
                    f"The tensor {name} of {weights} has weights that its mask prunes "
                    "and that are not 0. Apply the mask, and save again."
                )
    return Model(exported.call, *jax.tree.map(jnp.asarray, (params, mask)))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a file of tensors, of types that NumPy alone does not know as well."""
    from safetensors import SafetensorError, deserialize, safe_open

    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. Write it by jaxprune.save_model.")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        read = json.loads(metadata.get("jaxprune", "{}"))
        tensors = {}
        for name, facts in deserialize(path.read_bytes()):
            dtype = jnp.dtype(_DTYPES[facts["dtype"]])
            data = np.frombuffer(facts["data"], dtype)
            tensors[name] = data.reshape(facts["shape"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated, altered, or not a file that save_model wrote: "
            f"{error}"
        ) from error
    if read.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is of the format {read.get('format')!r}; this version of jaxprune "
            f"reads {_FORMAT!r}."
        )
    return read, tensors


def _mask_name(name: str) -> str:
    return f"{name}::mask"


def _unpacked(bits: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits, count=leaf.size).astype(bool).reshape(leaf.shape)


def _digest(data: np.ndarray) -> str:
    facts = f"{data.dtype}{list(data.shape)}".encode()
    return hashlib.sha256(facts + data.tobytes()).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
