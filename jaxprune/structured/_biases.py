"""Finds the bias of every layer: the leaf that is added to a product's output."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

from jaxprune.core import _checks
from jaxprune.jaxpr._control import (
    CALLS,
    CUSTOM_DERIVATIVES,
    open_jaxpr,
    read_branches,
    read_call,
    read_scan,
)
from jaxprune.post_training._paths import Atom, Path, follow, sliced, whole


class Bias(NamedTuple):
    """The path of a bias; ``axes`` maps axes of the weights to axes of the bias."""

    path: str
    axes: dict[int, int]


class _Products(NamedTuple):
    """A sum of outputs of products, which no other equation has read yet.

    Each dimension holds axes of the weights. Axes of the other operand have negative
    numbers.
    """

    paths: tuple[Path, ...]


def find_biases(fn: Callable[..., Any], params: Any, *inputs: Any) -> dict[str, Bias]:
    """Finds the bias that ``fn(params, *inputs)`` adds to the output of each weight.

    The result is keyed by the path of the weights. Every axis of a bias belongs to the
    weights' outputs or to the stack that both are in. Before the bias is added, the
    output may be converted, transposed, reshaped and added to, but nothing else may
    read it.
    """
    closed = jax.make_jaxpr(fn)(params, *inputs)
    leaves, names = jax.tree.leaves(params), _checks.leaf_paths(params)
    shapes = [leaf.shape for leaf in leaves]
    known: list[Any] = [whole(i, shape) for i, shape in enumerate(shapes)]
    known += [None] * len(jax.tree.leaves(inputs))
    found: dict[int, tuple[int, dict[int, int]]] = {}
    _walk(closed, known, shapes, found)
    return {
        names[weights]: Bias(names[bias], axes)
        for weights, (bias, axes) in found.items()
        if set(axes.values()) == {i for i, n in enumerate(leaves[bias].shape) if n > 1}
    }


def _walk(
    closed: Any,
    inputs: Sequence[Any],
    shapes: Sequence[tuple[int, ...]],
    found: dict[int, Any],
) -> list[Any]:
    """Follows leaves and products through a jaxpr; fills ``found``."""
    jaxpr, _ = open_jaxpr(closed)
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    reads = [atom for eqn in jaxpr.eqns for atom in eqn.invars] + list(jaxpr.outvars)
    times = Counter(map(id, reads))

    def read(atom: Any) -> Any:
        value = None if isinstance(atom, Literal) else known.get(atom)
        return None if isinstance(value, _Products) and times[id(atom)] > 1 else value

    for eqn in jaxpr.eqns:
        given, name, at = [*map(read, eqn.invars)], eqn.primitive.name, eqn.params
        outputs: Sequence[Any] = [None] * len(eqn.outvars)
        if name in CALLS or name in CUSTOM_DERIVATIVES:
            outputs = _walk(read_call(eqn), given, shapes, found)
        elif name == "scan":
            scan = read_scan(eqn)
            consts, carry, stacked = scan.split(given)
            paths = [p if isinstance(p, Path) else None for p in stacked]
            steps = [p and sliced(p, shapes[p.leaf]) for p in paths]
            _walk(scan.body, [*consts, *[None] * len(carry), *steps], shapes, found)
        elif name == "cond":
            for branch in read_branches(eqn):
                _walk(branch, given[1:], shapes, found)
        elif name == "dot_general":
            outputs = [_product(eqn, given)]
        elif name == "broadcast_in_dim" and isinstance(given[0], Path):
            outputs = [_broadcast(at, given[0])]
        elif name in ("add", "add_any"):
            outputs = [_add(given, found)]
        elif len(given) == 1 and isinstance(given[0], _Products):
            outputs = [_Products(_moved(name, at, given[0].paths))]
        elif len(given) == 1 and given[0] is not None:
            outputs = [follow(name, at, given[0])]
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _product(eqn: Any, given: list[Any]) -> _Products | None:
    """The output of a product of one leaf and one other array."""
    sides = [side for side, path in enumerate(given) if isinstance(path, Path)]
    if len(sides) != 1:
        return None
    (side,) = sides
    path, other = given[side], eqn.invars[1 - side].aval.shape
    summed, batched = eqn.params["dimension_numbers"]

    def free(which: int, rank: int) -> list[int]:
        return [i for i in range(rank) if i not in (*summed[which], *batched[which])]

    ours = [path.dims[i] for i in free(side, len(path.dims))]
    theirs = [
        (Atom(-1 - i, 1, other[i]),) if other[i] > 1 else ()
        for i in free(1 - side, len(other))
    ]
    rows = [path.dims[i] for i in batched[side]]
    dims = (*rows, *ours, *theirs) if side == 0 else (*rows, *theirs, *ours)
    return _Products((path._replace(dims=tuple(dims)),))


def _broadcast(at: dict[str, Any], path: Path) -> Path:
    """The path of a leaf repeated along new axes, which hold no axis of the leaf."""
    dims: list[tuple[Atom, ...]] = [()] * len(at["shape"])
    for dim, i in zip(path.dims, at["broadcast_dimensions"], strict=True):
        dims[i] = dim
    return path._replace(dims=tuple(dims))


def _moved(name: str, at: dict[str, Any], paths: tuple[Path, ...]) -> tuple[Path, ...]:
    found = [follow(name, at, path) for path in paths]
    return tuple(path for path in found if path is not None)


def _add(given: list[Any], found: dict[int, Any]) -> _Products | None:
    """The sum of two arrays; notes a bias if one of them is a leaf."""
    sums = [p for p in given if isinstance(p, _Products)]
    products = tuple(path for one in sums for path in one.paths)
    leaves = [p for p in given if isinstance(p, Path)]
    if not leaves:
        return _Products(products)
    for product in products:
        axes = _matched(product, leaves[0])
        if axes is not None:
            found.setdefault(product.leaf, (leaves[0].leaf, axes))
    return None


def _matched(product: Path, bias: Path) -> dict[int, int] | None:
    """Maps the axes of a product's weights to those of a bias, if they agree."""
    if len(product.scans) != len(bias.scans):
        return None
    axes = dict(zip(product.scans, bias.scans, strict=True))
    for ours, theirs in zip(product.dims, bias.dims, strict=True):
        mine = [atom for atom in ours if atom.axis >= 0]
        if [atom[1:] for atom in mine] != [atom[1:] for atom in theirs]:
            return None
        if mine and len(mine) != len(ours):
            return None
        for a, b in zip(mine, theirs, strict=True):
            if axes.setdefault(a.axis, b.axis) != b.axis:
                return None
    return axes
