"""Files of arrays that are whole or not there, and verified when they are read.

A file is an ``.npz`` archive without pickles: ``specification``, JSON as bytes;
``digest``, its SHA-256; and one array a leaf, named by its number. The specification
holds the format, and of every leaf its path, the SHA-256 of its bytes, and what else
the format asks for.
"""

import hashlib
import json
import os
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np


def check_paths(names: list[str], tree: str) -> None:
    """Raises if two leaves share a path."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{tree} has more than one leaf with the path {repeated[0]}, so a file "
            "could not tell them apart. Rename one."
        )


def check_same_paths(names: list[str], found: Any, path: Any) -> None:
    """Raises unless a file has the leaves of ``params``, naming the first that lacks.

    Args:
      names: the paths of ``params``.
      found: those of the file, or a dict by them.
      path: of the file.
    """
    for name in [*names, *found]:
        if name not in found or name not in names:
            has, lacks = ("params", path) if name in names else (path, "params")
            raise ValueError(f"{has} has a leaf {name}, which {lacks} lacks.")


def check_here(name: str, leaf: Any) -> None:
    """Raises if a part of a leaf is not on this host."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(
            f"The leaf {name} lies in part on other hosts. Gather it first "
            "(jax.experimental.multihost_utils.process_allgather)."
        )


def write(
    path: Path, specification: dict[str, Any], leaves: list[tuple[Any, np.ndarray]]
) -> None:
    """Writes a file under another name, flushes it, and renames it.

    Args:
      path: where to.
      specification: ``format`` at least.
      leaves: of each, what the specification says of it, ``path`` at least, and data.
    """
    facts = [{**fact, "digest": _digest(data)} for fact, data in leaves]
    words = json.dumps({**specification, "leaves": facts}).encode()
    arrays = {str(i): data for i, (_, data) in enumerate(leaves)}
    arrays["specification"] = np.frombuffer(words, np.uint8)
    arrays["digest"] = np.asarray(hashlib.sha256(words).hexdigest())
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}. Make it first.")
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read(
    path: Path, kind: str, writer: str
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], np.ndarray]]]:
    """Reads and verifies a file.

    Args:
      path: where it is.
      kind: the format that is read.
      writer: the function that writes it, for the errors.

    Returns:
      The specification; of every leaf, what it says, and the data.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if it is truncated, altered, or of another format.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        words = arrays["specification"].tobytes()
        sound = hashlib.sha256(words).hexdigest() == str(arrays["digest"])
        specification = json.loads(words)
        known = specification["format"] == kind
        facts = specification["leaves"]
        leaves = [(fact, arrays[str(i)]) for i, fact in enumerate(facts)]
        changed = [x["path"] for x, data in leaves if _digest(data) != x["digest"]]
    except FileNotFoundError:
        raise
    except Exception as error:  # Whatever NumPy makes of a damaged archive.
        raise ValueError(
            f"{path} is truncated, altered, or not a file that {writer} wrote: {error}"
        ) from error
    if not known:
        raise ValueError(
            f"{path} is of the format {specification['format']!r}; this version of "
            f"jaxprune reads {kind!r}."
        )
    if not sound:
        raise ValueError(
            f"{path} was altered after {writer} wrote it: its specification is not "
            "what its digest says."
        )
    for name in changed:
        raise altered(path, writer, name)
    return specification, leaves


def altered(path: Path, writer: str, name: str) -> ValueError:
    """The error that a leaf is not what was written."""
    return ValueError(
        f"{path} was altered after {writer} wrote it: the leaf {name} is not what its "
        "digest says."
    )


def _digest(data: np.ndarray) -> str:
    return hashlib.sha256(data.tobytes()).hexdigest()
