"""Modules at their narrowed sizes: the layers stay layers.

The table of a library (`jaxprune.structured._nnx_layers`, `_equinox_layers`) holds each
type of layer that can be narrowed, and how its sizes follow from its arrays. Other
modules are refused if they hold narrowed arrays, or a number that one of these had as
its size: their code may depend on it.
"""

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jaxprune.core import _checks
from jaxprune.structured._groups import Group
from jaxprune.structured._layers import Layer, Library, refusal
from jaxprune.structured._narrow import (
    Removed,
    channels_removed,
    removed_positions,
    without_removed,
)

_T = TypeVar("_T")

_LIBRARIES = {
    "flax": "jaxprune.structured._nnx_layers",
    "equinox": "jaxprune.structured._equinox_layers",
}


def narrow_module(model: Any, mask: Any, groups: Sequence[Group]) -> Any:
    """Removes channels from a Flax NNX or Equinox module, layer by layer.

    The copy has the same layers with fewer features each: arrays are narrowed as in
    `shrink`, and the layers' numbers (``out_features``, ``hidden_features``, ...)
    follow. Norms average over their new width, so the module computes what
    ``shrink(..., mean_width="new")`` does; without norms over channels, it computes
    what the masked module does.

    *Layers.* Linear layers (LinearGeneral, Einsum and LoRA too), convolutions (grouped
    ones lose whole groups), embeddings, norms (group norms lose whole groups),
    recurrent cells and attention can be narrowed, and ``equinox.nn.MLP`` if its hidden
    layers keep one size. Attention loses whole heads and, where they can be removed,
    dimensions of all heads. It then divides by the root of the new head size, so the
    query's weights are scaled to make up for it.

    *Other modules* are refused if they hold narrowed arrays themselves, or a whole
    number that was a size of one (``self.hidden = 64``), because their code may use it.
    A width that is written in the code itself (a reshape to 32 * 49) is not seen:
    compare the outputs once with those of `shrink`.

    Args:
      model: an ``nnx.Module`` or an ``equinox.Module``; it does not change.
      mask: a concrete tree of bool, True = kept, like the model's arrays or a part of
        them.
      groups: the groups, found for those arrays: ``nnx.split(model)[1]``, running
        statistics included, as a State or as a pure dict; or
        ``equinox.partition(model, equinox.is_array)[0]``.

    Returns:
      A narrowed copy of the module.

    Raises:
      TypeError: if ``mask`` is not bool, or has no values; or if a module cannot be
        narrowed so that it computes the same, naming it.
      ValueError: if ``mask`` removes all channels of a group or has a leaf that the
        model lacks, or if a layer's arrays do not all become narrower (running
        statistics that the groups were found without), naming it.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> from flax import nnx
      >>> up, down = (nnx.Linear(*n, rngs=nnx.Rngs(0)) for n in ((8, 4), (4, 2)))
      >>> model, x = nnx.Sequential(up, nnx.relu, down), jnp.ones((10, 8))
      >>> graphdef, state = nnx.split(model)
      >>> def apply_fn(state, x):
      ...     return nnx.merge(graphdef, state, copy=True)(x)
      >>> groups = jp.structured.channel_groups(apply_fn, state, x)
      >>> scores = jp.structured.group_scores(jp.magnitude(state), groups)
      >>> mask = jp.structured.structured_mask(scores, groups, state, 0.5)
      >>> small = jp.structured.narrow_module(model, mask, groups)
      >>> small.layers[0].out_features, small(x).shape
      (2, (10, 2))
    """
    library = _library(model)
    arrays = library.arrays(model)
    removed = removed_positions(mask, mask, groups)
    masks = dict(zip(_checks.leaf_paths(mask), jax.tree.leaves(mask), strict=True))
    owners = {path: _owner(path, arrays) for path in masks}
    values = {path: arrays[owner] for path, owner in owners.items()}
    _checks.check_mask(masks, values)
    found = without_removed(values, masks, removed)
    small = library.replaced(model, {owners[path]: found[path] for path in found})

    gone: dict[str, dict[int, np.ndarray]] = {}
    for (path, axis), positions in removed.items():
        after = gone.setdefault(owners[path], {})
        after[axis - np.ndim(values[path])] = positions
    sizes = _old_sizes(mask, groups, removed, owners)
    modules = library.modules(small)
    holders = {path: _holder(path, modules) for path in gone}
    for name, module in modules.items():
        layer = Layer(name or "(root)", module, _below(name, gone))
        if layer.gone and type(module) in library.layers:
            for attribute, value in library.layers[type(module)](layer).items():
                library.assign(module, attribute, value)
        else:
            own = [path for path, holder in holders.items() if holder == name]
            inside = _below(name, arrays)
            _check_other(layer, library, own, _below(name, sizes) if inside else sizes)
    return small


def _library(model: Any) -> Library:
    """The library that a model is a module of; it is imported when it is needed."""
    for base in type(model).__mro__:
        name = _LIBRARIES.get(_package(base))
        library = importlib.import_module(name).LIBRARY if name else None
        if library and isinstance(model, library.module):
            return library
    raise TypeError(
        f"model must be an nnx.Module or an equinox.Module; got "
        f"{_checks.described(model)}. A function and its parameters are for shrink, a "
        "tree of parameters for narrow."
    )


def _owner(path: str, arrays: dict[str, Any]) -> str:
    """The model's array that a leaf of its state or of its pure dict is."""
    for name in (path, path.removesuffix("/value")):
        if name in arrays:
            return name
    raise ValueError(
        f"The mask has a leaf {path}, but the model has no such array. Find groups and "
        "mask for the model's own state: nnx.split(model)[1], or "
        "equinox.partition(model, equinox.is_array)[0]."
    )


def _below(name: str, tree: dict[str, _T]) -> dict[str, _T]:
    """What belongs to a module and its submodules, by its path from the module."""
    start = f"{name}/" if name else ""
    inside = [path for path in tree if path.startswith(start)]
    return {path.removeprefix(start): tree[path] for path in inside}


def _holder(path: str, modules: dict[str, Any]) -> str:
    """The module that holds an array itself: the deepest one above it."""
    return max((m for m in modules if not m or path.startswith(f"{m}/")), key=len)


def _old_sizes(
    mask: Any, groups: Sequence[Group], removed: Removed, owners: dict[str, str]
) -> dict[str, set[int]]:
    """For every narrowed array: the numbers by which a module may know its old size."""
    sizes: dict[str, set[int]] = {}
    for (path, _), positions in removed.items():
        sizes.setdefault(owners[path], set()).add(len(positions))
    for group, gone in zip(groups, channels_removed(mask, groups), strict=True):
        for member in group.members if gone.any() else ():
            sizes[owners[member.path]].add(group.size)
    return sizes


def _check_other(
    layer: Layer, library: Library, own: list[str], sizes: dict[str, set[int]]
) -> None:
    """Raises if a module that has no line in the table may depend on a narrowed size.

    Args:
      layer: the module.
      library: the library that it belongs to.
      own: the narrowed arrays that it holds itself.
      sizes: the old sizes of the narrowed arrays that it could depend on.
    """
    kind = type(layer.module)
    foreign = _package(kind) != _package(library.module)
    if own or (layer.gone and not foreign and kind not in library.containers):
        path = (own or list(layer.gone))[0]
        raise refusal(layer, f"narrow_module does not know what depends on {path}")
    if kind in library.bare:
        numbers = {"the number": library.bare[kind](layer.module)}
    else:
        numbers = _numbers(layer.module) if foreign else {}
    for name, values in numbers.items():
        for path, old in sizes.items():
            for number in old.intersection(values):
                raise refusal(
                    layer,
                    f"it holds {name} {number}, an old size of {path}, and "
                    "narrow_module does not know what depends on it",
                    "let its code read the size from its layers",
                )


def _numbers(module: Any) -> dict[str, tuple[int, ...]]:
    """The whole numbers that a module holds, by attribute."""
    found = {}
    for name, value in vars(module).items():
        values = value if isinstance(value, tuple | list) else (value,)
        if all(isinstance(n, int | np.integer) for n in values):
            found[name] = tuple(n for n in values if not isinstance(n, bool))
    return found


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
