"""What the layers of every library share when a module is narrowed.

A library's table says for each type of layer which attributes name a size, as a
function of the layer's narrowed arrays: ``resize(layer) -> {attribute: new value}``. A
layer that cannot express its new sizes is refused.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Layer(NamedTuple):
    """A module whose arrays, or whose submodules' arrays, were narrowed.

    Attributes:
      name: its path in the model.
      module: the module itself, which holds the narrowed arrays and the old sizes.
      gone: for every narrowed array below it, by its path from here, and for each of
        its axes, counted from the end: which of the old positions are removed.
    """

    name: str
    module: Any
    gone: dict[str, dict[int, np.ndarray]]


Resize = Callable[[Layer], dict[str, Any]]

REMEDY = "Use shrink, which replays the model's function, or protect the group"


class Library(NamedTuple):
    """How the modules of one library are read, copied and resized.

    Attributes:
      module: the base class of the library's modules.
      arrays: ``arrays(model)``, all its arrays by path.
      replaced: ``replaced(model, arrays)``, a copy of the model that holds them.
      modules: ``modules(model)``, all its modules by path, itself as "".
      assign: ``assign(module, attribute, value)``, in place.
      layers: how each type of layer is resized.
      containers: types that hold other modules and do not depend on their sizes.
      bare: for each type whose layers may lack arrays: the sizes that such a layer
        names.
    """

    module: type
    arrays: Callable[[Any], dict[str, Any]]
    replaced: Callable[[Any, dict[str, Any]], Any]
    modules: Callable[[Any], dict[str, Any]]
    assign: Callable[[Any, str, Any], None]
    layers: dict[type, Resize]
    containers: tuple[type, ...]
    bare: dict[type, Callable[[Any], tuple[int, ...]]]


def refusal(layer: Layer, problem: str, remedy: str = "") -> TypeError:
    """The error for a layer that would not compute what the small function does."""
    kind, remedy = type(layer.module).__name__, f", or {remedy}" if remedy else ""
    return TypeError(f"{layer.name} is a {kind}: {problem}. {REMEDY}{remedy}.")


def array_at(module: Any, path: str) -> Any:
    """The array at a path from a module, such as ``query/kernel``; None if missing."""
    return functools.reduce(
        lambda node, name: getattr(node, name, None), path.split("/"), module
    )


def shape_at(layer: Layer, path: str) -> tuple[int, ...]:
    """The narrowed shape of the array at a path."""
    return array_at(layer.module, path).shape


def lost(layer: Layer, path: str, axis: int) -> np.ndarray:
    """Which positions along an axis were removed; ``axis`` counts from the end."""
    gone = layer.gone.get(path, {})
    return gone[axis] if axis in gone else np.zeros(shape_at(layer, path)[axis], bool)


def no_sizes(layer: Layer) -> dict[str, Any]:
    """For layers that name no size: containers, elementwise functions."""
    del layer
    return {}


def agree(layer: Layer, size: int | None, *parts: str, axis: int = -1) -> int:
    """The one size of the parts that a layer has; raises if they differ."""
    found = [(part, array_at(layer.module, part)) for part in parts]
    sizes = [(part, array.shape[axis]) for part, array in found if array is not None]
    expected = sizes[0][1] if size is None else size
    for part, own in sizes:
        check_size(layer, part, own, expected)
    return expected


def check_size(layer: Layer, part: str, size: int, expected: int) -> None:
    """Raises if a part of a layer was not narrowed along with the others."""
    if size != expected:
        raise ValueError(
            f"{layer.name}: its {part} has {size} channels, but the layer now has "
            f"{expected}. Find the groups for the model's whole state, so that all of "
            "its arrays are narrowed."
        )


def kept_groups(layer: Layer, gone: np.ndarray, groups: int) -> int:
    """How many of the groups of a group norm stay; raises if some are cut."""
    rows = gone.reshape(groups, -1)
    if (rows.any(1) != rows.all(1)).any():
        raise refusal(
            layer,
            f"keeps {(~gone).sum()} channels, but not whole groups of {rows.shape[1]}",
        )
    return int((~rows.all(1)).sum())


def hidden_size(
    layer: Layer,
    gates: int,
    produced: Sequence[tuple[str, int]],
    read: Sequence[tuple[str, int]],
) -> int:
    """The new size of a recurrent cell's state.

    Args:
      layer: the cell.
      gates: how many times a produced axis holds the hidden units.
      produced: the arrays, and their axes, that produce the gates.
      read: the arrays, and their axes, that read the state.
    """
    units = lost(layer, *read[0])
    for path, axis in (*produced, *read):
        if array_at(layer.module, path) is None:
            continue
        rows = lost(layer, path, axis).reshape(1 if (path, axis) in read else gates, -1)
        if rows.shape[1] != len(units) or (rows != units).any():
            raise refusal(layer, f"{path} loses other hidden units than its state")
    return int((~units).sum())


def heads_and_dims(
    layer: Layer, path: str, axis: int, heads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which heads, and which dimensions of all others, an axis of both loses."""
    rows = lost(layer, path, axis).reshape(heads, -1)
    whole = rows.all(1)
    rest = rows[~whole]
    if (rest != rest[0]).any():
        raise refusal(layer, f"its heads lose different dimensions of {path}")
    return whole, rest[0]
