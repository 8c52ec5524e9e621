"""Files of arrays: written atomically, and verified when they are read.

A file is in the safetensors format, so other tools can open it: the length of a header,
the header in JSON, and the bytes of the tensors. The metadata in the header hold a
specification in JSON and its SHA-256. The specification has the kind of the file, the
facts of its writer, and the dtype, shape and SHA-256 of every tensor.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

# The dtypes that all readers of safetensors know. The rest is stored as plain bytes.
_CODES = {
    "bool": "BOOL",
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
_METADATA = "__metadata__"


def write(
    path: Path, kind: str, specification: dict[str, Any], tensors: dict[str, np.ndarray]
) -> None:
    """Writes a file atomically.

    Args:
      path: the file; an existing one is replaced.
      kind: the format and its version.
      specification: the facts of the writer, in JSON's types.
      tensors: a dict from names to arrays.

    Raises:
      ValueError: if a tensor has a name that safetensors reserve.
      FileNotFoundError: if the folder does not exist.
    """
    if _METADATA in tensors:
        raise ValueError(
            f"A safetensors file cannot hold a leaf with the path {_METADATA}. Rename "
            "the leaf."
        )
    facts = {name: _facts(data) for name, data in tensors.items()}
    words = json.dumps({**specification, "format": kind, "tensors": facts})
    header: dict[str, Any] = {
        _METADATA: {"jaxprune": words, "digest": digest(words.encode())}
    }
    end = 0
    order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))  # Aligned.
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {**_entry(facts[name]), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    length = len(encoded).to_bytes(8, "little")
    replace(path, [length, encoded, *(_bytes(tensors[name]) for name in order)])


def read(
    path: Path, kind: str, writer: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads and verifies a file.

    Args:
      path: the file.
      kind: the expected format and version.
      writer: the function that writes such files, for error messages.

    Returns:
      The specification, and a dict from names to tensors.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if it is truncated, altered, or of another format.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. Write it with jaxprune.{writer}.")
    content = path.read_bytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        metadata = header.pop(_METADATA, {})
        words = metadata.get("jaxprune", "{}")
        specification = json.loads(words)
        end = max([0, *(entry["data_offsets"][1] for entry in header.values())])
        if start + end != len(content):
            raise ValueError(f"{start + end} bytes expected, {len(content)} found")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is truncated, altered, or not a file that {writer} wrote: {error}"
        ) from error
    if specification.get("format") != kind:
        raise ValueError(
            f"{path} is of the format {specification.get('format')!r}; this version of "
            f"jaxprune reads {kind!r}."
        )
    facts = specification.get("tensors", {})
    if digest(words.encode()) != metadata.get("digest") or facts.keys() - header.keys():
        raise ValueError(
            f"{path} was altered after {writer} wrote it: its specification does not "
            "match its digest."
        )
    tensors = {}
    for name, entry in header.items():
        first, last = entry.pop("data_offsets")
        data = memoryview(content)[start + first : start + last]
        fact = facts.get(name)
        if not fact or entry != _entry(fact) or digest(data) != fact["digest"]:
            raise altered(path, writer, name)
        tensors[name] = np.ndarray(fact["shape"], jnp.dtype(fact["dtype"]), data)
    return specification, tensors


def altered(path: Path, writer: str, name: str) -> ValueError:
    """The error for a tensor that does not match its digest."""
    return ValueError(
        f"{path} was altered after {writer} wrote it: the tensor {name} does not match "
        "its digest."
    )


def replace(path: Path, chunks: Iterable[Any]) -> None:
    """Writes bytes under another name, flushes them, and renames the file."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}. Make it first.")
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def digest(data: Any) -> str:
    """Computes the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def _facts(data: np.ndarray) -> dict[str, Any]:
    return {
        "dtype": data.dtype.name,
        "shape": list(data.shape),
        "digest": digest(_bytes(data)),
    }


def _entry(facts: dict[str, Any]) -> dict[str, Any]:
    """The dtype and shape of a tensor in the header."""
    dtype, shape = jnp.dtype(facts["dtype"]), facts["shape"]
    if dtype.name in _CODES:
        return {"dtype": _CODES[dtype.name], "shape": shape}
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return {"dtype": "U8", "shape": [size]}


def _bytes(data: np.ndarray) -> memoryview:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
