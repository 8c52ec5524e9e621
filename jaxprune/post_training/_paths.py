"""Tracks where the entries of a leaf are in an array that is the leaf rearranged.

An array between a leaf and a product is the leaf converted, transposed or reshaped.
Each of its dimensions is a sequence of atoms, from the slowest to the fastest. An atom
is a piece of one axis of the leaf: ``size`` positions, ``stride`` apart.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Atom(NamedTuple):
    """A piece of an axis of a leaf."""

    axis: int
    stride: int
    size: int


class Path(NamedTuple):
    """An array that is a leaf rearranged: the leaf, and the atoms of each dimension.

    ``scans`` lists the leaf's axes that enclosing scans run along, outermost first.
    """

    leaf: int
    dims: tuple[tuple[Atom, ...], ...]
    scans: tuple[int, ...] = ()


def whole(leaf: int, shape: Sequence[int]) -> Path:
    """The path of an unchanged leaf."""
    return Path(leaf, tuple(_atoms(axis, n) for axis, n in enumerate(shape)))


def _atoms(axis: int, size: int) -> tuple[Atom, ...]:
    return () if size == 1 else (Atom(axis, 1, size),)


def follow(name: str, at: dict[str, Any], path: Path) -> Path | None:
    """The path after a primitive with one operand, or None if it cannot be followed."""
    dims = path.dims
    if name in ("convert_element_type", "copy", "copy_p", "stop_gradient", "neg"):
        return path
    if name in ("optimization_barrier", "sharding_constraint", "reshard", "pvary"):
        return path
    if name == "transpose":
        return path._replace(dims=tuple(dims[i] for i in at["permutation"]))
    if name == "squeeze":
        lost = at["dimensions"]
        kept = tuple(d for i, d in enumerate(dims) if i not in lost)
        return path._replace(dims=kept)
    if name == "broadcast_in_dim":
        return _broadcast(at, path)
    if name == "reshape" and at["dimensions"] is None:
        return _reshaped(path, at["new_sizes"])
    return None


def _broadcast(at: dict[str, Any], path: Path) -> Path | None:
    new: list[tuple[Atom, ...]] = [()] * len(at["shape"])
    for dim, i in zip(path.dims, at["broadcast_dimensions"], strict=True):
        new[i] = dim
    sizes = [_size(dim) for dim in new]
    return path._replace(dims=tuple(new)) if sizes == list(at["shape"]) else None


def _size(dim: Sequence[Atom]) -> int:
    total = 1
    for atom in dim:
        total *= atom.size
    return total


def _reshaped(path: Path, shape: Sequence[int]) -> Path | None:
    """Distributes the atoms over new dimensions, splitting atoms at boundaries."""
    rest = [atom for dim in path.dims for atom in dim][::-1]
    dims = []
    for size in shape:
        dim = []
        while size > 1:
            atom = rest.pop()
            if size % atom.size == 0:
                dim.append(atom)
                size //= atom.size
            elif atom.size % size == 0:
                inner = atom.size // size
                dim.append(Atom(atom.axis, atom.stride * inner, size))
                rest.append(Atom(atom.axis, atom.stride, inner))
                size = 1
            else:
                return None
        dims.append(tuple(dim))
    return path._replace(dims=tuple(dims))


def sliced(path: Path, shape: Sequence[int]) -> Path | None:
    """One step of a scan along the leading dimension, which must be one whole axis.

    Args:
      path: the array that the scan runs along.
      shape: the leaf's shape, which says which axis a dimension of size 1 can be.
    """
    first, *others = path.dims
    ones = [i for i, n in enumerate(shape) if n == 1 and i not in path.scans]
    axes = {atom.axis for atom in first} or {*ones[:1]}
    if len(first) > 1 or len(axes) != 1:
        return None
    (axis,) = axes
    if any(atom.axis == axis for dim in others for atom in dim):
        return None
    return Path(path.leaf, tuple(others), (*path.scans, axis))
