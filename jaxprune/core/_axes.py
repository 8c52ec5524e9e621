"""The input axes of each leaf: those that a layer sums over."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxprune.core import _checks

FLAX = "flax"

Axes: TypeAlias = int | Sequence[int] | Mapping[str, Any] | Any
"""The input axes: one or more integers for all leaves; a mapping from paths to integers
or a tree of them like the parameters, where leaves without an entry take no part; or
``"flax"``, the layout of Flax's kernels."""


def check_axes(axis: Any) -> None:
    """Raises if ``axis`` is wrong for every tree."""
    if axis is None or (_is_leaf(axis) and axis != FLAX):
        _integers(axis)


def axes_of(axis: Any, tree: Any, flags: Sequence[bool] | None = None) -> list[Any]:
    """Lists the entry of each leaf of a tree, as `numbered` takes it.

    The entry is None for a leaf that takes no part, because ``axis`` does not name it
    or it is not flagged, and ``"flax"`` for a leaf of unknown layout.
    """
    check_axes(axis)
    entries, paths = _entries(axis, tree), _checks.leaf_paths(tree)
    if flags is None:
        return entries
    entries = [e if flag else None for e, flag in zip(entries, flags, strict=True)]
    if all(entry is None for entry in entries):
        prunable = [path for path, flag in zip(paths, flags, strict=True) if flag]
        raise ValueError(
            f"axis has no entry for a prunable leaf: {_checks.some(prunable)}. Pass "
            "what jp.input_axes returns for the same params and prunable."
        )
    return entries


def _entries(axis: Any, tree: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(tree)
    paths = _checks.leaf_paths(tree)
    if isinstance(axis, str):
        shapes = dict(zip(paths, map(np.shape, leaves), strict=True))
        return [flax_axes(path, shapes) or FLAX for path in paths]
    if _is_leaf(axis):
        return [axis] * len(leaves)
    if isinstance(axis, Mapping) and all(path in paths for path in axis):
        return [axis.get(path) for path in paths]
    try:
        return structure.flatten_up_to(axis)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            "axis must be one or more integers, a mapping from paths to them, as "
            "jp.input_axes returns for the same params, or a tree of them like params; "
            f"the paths are {_checks.some(paths)}, and axis is {axis!r:.80}."
        ) from error


def numbered(entry: Any, path: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Reads the axes of one leaf, in ascending order; raises if they do not exist."""
    if isinstance(entry, str) and entry == FLAX:
        raise ValueError(
            f"The leaf {path} of shape {tuple(shape)} could have its inputs along any "
            "axis. Pass axis=jp.input_axes(fn, params, x), or axis=-2 if the second to "
            "last axis holds the inputs, as in a stack of matrices."
        )
    axes, known = _integers(entry), range(-len(shape), len(shape))
    if not axes or not all(a in known for a in axes):
        raise ValueError(
            f"The leaf {path} of shape {tuple(shape)} has no axis "
            f"{', '.join(map(repr, axes))}. Pass one or more axes from "
            f"{-len(shape)} to {len(shape) - 1}. For the input axis of a Flax kernel "
            "pass axis=-2."
        )
    return tuple(sorted({a % len(shape) for a in axes}))


def flax_axes(path: str, shapes: Mapping[str, Any]) -> int | tuple[int, ...] | None:
    """The input axes of a Flax kernel, or None if the shapes do not determine them.

    It knows matrices, the kernels of an attention (the output's kernel beside them has
    the same heads), and convolutions whose window has equal sides.

    Args:
      path: the path of the leaf.
      shapes: the shapes of all leaves, by path.
    """
    shape = shapes[path]
    rank = len(shape)
    if rank <= 2:
        return -2
    names = path.split("/")
    depth = 2 if names[-1] == "value" else 1  # An nnx.State has /kernel/value.
    names, end = names[:-depth], names[-depth:]
    role, block = (names or [""])[-1], names[:-1]
    heads = shapes.get("/".join([*block, "query", *end]), ())[-2:]
    out = shapes.get("/".join([*block, "out", *end]), ())
    if heads and len(out) == rank and out[-3:-1] == heads:
        if role == "out":
            return (-3, -2)
        if role in ("query", "key", "value") and shape[-2:] == heads:
            return -3
    window = set(shape[:-2]) - {1}
    return tuple(range(rank - 1)) if rank > 3 and len(window) <= 1 else None


def _integers(entry: Any) -> list[int]:
    several = isinstance(entry, Sequence) and not isinstance(entry, str)
    return [_checks.check_axis(a) for a in (entry if several else [entry])]


def _is_leaf(entry: Any) -> bool:
    """Tells whether an entry is one of a leaf, and not a tree."""
    if isinstance(entry, list | tuple):
        return all(isinstance(a, int | np.integer) for a in entry)
    return isinstance(entry, bool | int | float | np.generic | str)
