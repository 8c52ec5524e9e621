"""Which axes of each leaf number a layer's inputs."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxprune.core import _checks

FLAX = "flax"

Axes: TypeAlias = int | Sequence[int] | Mapping[str, Any] | Any
"""The axes that number the inputs of a layer, together one row: an integer or several
for all leaves; a mapping from paths to them, or a tree of them like the parameters, in
which a leaf without an entry takes no part; or ``"flax"``."""


def check_axes(axis: Any) -> None:
    """Raises if ``axis`` cannot be one for any tree."""
    if axis is None or (_is_leaf(axis) and axis != FLAX):
        _integers(axis)


def axes_of(axis: Any, tree: Any, flags: Sequence[bool] | None = None) -> list[Any]:
    """One entry a leaf of a tree, as `numbered` takes it.

    None stands for a leaf that takes no part: it has no entry, or is not among those
    flagged. ``"flax"`` stands for one whose layout is unknown.
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
    """The axes of one leaf in ascending order; raises if it does not have them."""
    if isinstance(entry, str) and entry == FLAX:
        raise ValueError(
            f"The leaf {path} of shape {tuple(shape)} could have its inputs along "
            "several axes. Pass axis=jp.input_axes(fn, params, x), which knows them, "
            "or axis=-2 if they are the second to last axis, as in a stack of matrices."
        )
    axes, known = _integers(entry), range(-len(shape), len(shape))
    if not axes or not all(a in known for a in axes):
        raise ValueError(
            f"The leaf {path} of shape {tuple(shape)} has no axis "
            f"{', '.join(map(repr, axes)) or 'at all'}: axis numbers one or more, from "
            f"{-len(shape)} to {len(shape) - 1}. For the inputs of a Flax kernel pass "
            "axis=-2."
        )
    return tuple(sorted({a % len(shape) for a in axes}))


def flax_axes(path: str, shapes: Mapping[str, Any]) -> int | tuple[int, ...] | None:
    """The inputs of a kernel as Flax lays it out; None if the shapes do not tell.

    Known are matrices, the kernels of an attention (from that of its output, which has
    the same heads), and convolutions with a window of equal sides.

    Args:
      path: the leaf's.
      shapes: of all leaves, by their paths.
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
    """Tells whether this is for one leaf, and not a tree."""
    if isinstance(entry, list | tuple):
        return all(isinstance(a, int | np.integer) for a in entry)
    return isinstance(entry, bool | int | float | np.generic | str)
