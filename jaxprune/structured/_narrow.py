"""Removes channels from parameters, and from trees that contain copies of them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.core import _checks
from jaxprune.masks._summary import check_concrete
from jaxprune.structured._adapters import divides, take
from jaxprune.structured._groups import Group, check_groups, check_member

Removed = dict[tuple[str, int], np.ndarray]
"""For the path and axis of every narrowed leaf: which positions are removed."""


def narrow(tree: Any, mask: Any, groups: Sequence[Group]) -> Any:
    """Removes channels from a tree that contains trees like the parameters.

    Moments, moving averages and gradients lose the channels that the parameters lose in
    `shrink`, so training continues without a restart. A leaf belongs to the parameter
    whose path is the end of its own path. If there is none, the first key of the
    parameters' paths is ignored (the optimizer may only know ``variables["params"]``).
    If the parameters are a bare array, every leaf of its shape belongs to it. All other
    leaves (step counts) are returned unchanged.

    Args:
      tree: a tree like ``params``, or one that contains such trees: an optax state.
      mask: a concrete tree of bool like ``params``, True = kept.
      groups: the groups of channels, from `channel_groups`.

    Returns:
      The tree, with fewer entries in the leaves that belong to narrowed parameters.

    Raises:
      TypeError: if ``mask`` is not bool, or has no values.
      ValueError: if ``mask`` removes all channels of a group, if a leaf belongs to a
        narrowed parameter but has another shape (factored moments), or if no array of
        the tree belongs to any parameter.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp, optax
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"v": jnp.ones((4, 2)), "w": jnp.ones((8, 4))}
      >>> groups = jp.structured.channel_groups(apply_fn, params, jnp.ones((10, 8)))
      >>> keep = jnp.arange(4) < 3
      >>> mask = {"v": jnp.tile(keep[:, None], 2), "w": jnp.tile(keep, (8, 1))}
      >>> state = optax.sgd(0.1, momentum=0.9).init(params)
      >>> small = jp.structured.narrow(state, mask, groups)
      >>> jax.tree.map(jnp.shape, optax.tree.get(small, "trace"))
      {'v': (3, 2), 'w': (8, 3)}
    """
    axes = _by_path(removed_positions(mask, mask, groups))
    shapes = _shapes(mask)
    leaves, structure = jax.tree.flatten(tree)
    paths = _checks.leaf_paths(tree)
    owners = _owners(paths, list(map(np.shape, leaves)), shapes)
    arrays = [_checks.is_floating(leaf) and np.ndim(leaf) > 0 for leaf in leaves]
    if axes and any(arrays) and not any(owners):
        raise ValueError(
            f"No leaf of the tree belongs to a parameter: it has {paths[0]}, the mask "
            f"{next(iter(shapes))}. A leaf's path must end in a parameter's, with or "
            "without its first key. Pass a tree that contains trees like params."
        )
    chosen = {
        i: axes[owner]
        for i, owner in enumerate(owners)
        if owner in axes and np.ndim(leaves[i])
    }
    for i in chosen:
        if np.shape(leaves[i]) != shapes[owners[i]]:
            raise ValueError(
                f"The leaf {paths[i]} is {np.shape(leaves[i])}, but "
                f"the parameter {owners[i]} that it belongs to is {shapes[owners[i]]}, "
                "so it cannot be narrowed along with it. Initialize this state again."
            )
    arrays = [leaves[i] for i in chosen]
    whole = [np.ones(np.shape(array), bool) for array in arrays]
    small = _cut(arrays, whole, list(chosen.values()))
    for i, array in zip(chosen, small, strict=True):
        leaves[i] = array
    return jax.tree.unflatten(structure, leaves)


def removed_positions(mask: Any, params: Any, groups: Sequence[Group]) -> Removed:
    """Finds the positions along every axis that a mask removes."""
    check_groups(groups)
    _checks.check_mask(mask, params)
    removed: Removed = {}
    for group, gone in zip(groups, channels_removed(mask, groups), strict=True):
        if gone.all():
            raise ValueError(
                f"The mask removes all {group.size} channels of {group.name}, which "
                "cuts the function in two. Keep at least one (min_keep=1)."
            )
        for member in group.members if gone.any() else ():
            key = member.path, member.axis
            if key not in removed:
                removed[key] = np.zeros(_shapes(mask)[key[0]][key[1]], bool)
            removed[key][member.index[gone].ravel()] = True
    return removed


def channels_removed(mask: Any, groups: Sequence[Group]) -> list[np.ndarray]:
    """For every group: whether the mask is False on all slices of each channel."""
    check_groups(groups)
    _checks.check_mask(mask, mask)
    check_concrete(mask, "shrink")
    leaves = dict(zip(_checks.leaf_paths(mask), jax.tree.leaves(mask), strict=True))
    found = []
    for group in groups:
        gone = np.ones(group.size, bool)
        for member in group.members:
            leaf = _member_leaf(leaves, member.path, group)
            check_member(leaf.shape, member, group, "mask")
            others = tuple(i for i in range(leaf.ndim) if i != member.axis)
            gone &= ~np.any(leaf, axis=others)[member.index].any(1)
        found.append(gone)
    return found


def _member_leaf(leaves: dict[str, Any], path: str, group: Group) -> np.ndarray:
    if path not in leaves:
        raise ValueError(
            f"The group {group.name} has a member {path}, which the mask lacks. Pass "
            "groups found for the same params."
        )
    return np.asarray(leaves[path])


def without_removed(params: Any, mask: Any, removed: Removed) -> Any:
    """Removes channels from the parameters, and sets other pruned entries to 0."""
    masks, axes = list(map(np.asarray, jax.tree.leaves(mask))), _by_path(removed)
    positions = [axes.get(path, {}) for path in _checks.leaf_paths(params)]
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, _cut(leaves, masks, positions))


def _cut(
    leaves: list[Any], masks: list[np.ndarray], removed: list[dict[int, np.ndarray]]
) -> list[Any]:
    """Takes the kept positions, and sets other pruned entries to 0.

    Leaves on the host are cut there, the rest in one program.

    A leaf that is narrowed along a sharded axis stays sharded if its new size divides.
    """

    def cut(leaves: list[Any]) -> list[Any]:
        found = []
        for leaf, mask, axes in zip(leaves, masks, removed, strict=True):
            for axis, gone in axes.items():
                leaf = take(leaf, axis, np.flatnonzero(~gone))
                mask = np.compress(~gone, mask, axis)
            if not mask.all():
                leaf = jnp.where(mask, leaf, jnp.zeros_like(leaf))
            found.append(leaf)
        return found

    if all(map(_is_on_host, leaves)):
        return list(map(_cut_on_host, leaves, masks, removed))
    small = jax.jit(cut)(leaves)
    return [sharded_like(new, old) for new, old in zip(small, leaves, strict=True)]


def _is_on_host(leaf: Any) -> bool:
    return _checks.on_host(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _cut_on_host(leaf: Any, mask: np.ndarray, axes: dict[int, np.ndarray]) -> Any:
    array = np.asarray(leaf)
    for axis, gone in axes.items():
        array, mask = (np.compress(~gone, one, axis) for one in (array, mask))
    if not mask.all():
        array = np.where(mask, array, np.zeros_like(array))
    committed = isinstance(leaf, jax.Array) and leaf.committed
    return jax.device_put(array, leaf.sharding if committed else None)


def sharded_like(array: Any, like: Any) -> Any:
    """Shards an array like another one, except where its size does not divide."""
    sharding = None if isinstance(like, Tracer) else getattr(like, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return array
    parts = [*sharding.spec, *[None] * (array.ndim - len(sharding.spec))]
    for axis, names in enumerate(parts):
        if not divides(array.shape[axis], names, sharding.mesh):
            parts[axis] = None
    return jax.device_put(array, sharding.update(spec=PartitionSpec(*parts)))


def _by_path(removed: Removed) -> dict[str, dict[int, np.ndarray]]:
    axes: dict[str, dict[int, np.ndarray]] = {}
    for (path, axis), gone in removed.items():
        axes.setdefault(path, {})[axis] = gone
    return axes


def _shapes(mask: Any) -> dict[str, tuple[int, ...]]:
    leaves = map(np.shape, jax.tree.leaves(mask))
    return dict(zip(_checks.leaf_paths(mask), leaves, strict=True))


def _owners(
    paths: list[str], shapes: list[tuple[int, ...]], names: dict[str, tuple[int, ...]]
) -> list[str]:
    """Finds the parameter that each leaf of a tree belongs to, or ""."""
    if "(root)" in names:
        return ["(root)" if s == names["(root)"] else "" for s in shapes]
    within: dict[str, list[str]] = {}
    for name in names:
        within.setdefault(name.partition("/")[2], []).append(name)
    alone = {rest: found[0] for rest, found in within.items() if len(found) == 1}
    known = {**alone, **{name: name for name in names}}
    known.pop("", None)
    return [_longest(path, known) for path in paths]


def _longest(path: str, known: dict[str, str]) -> str:
    parts = path.split("/")
    endings = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((known[ending] for ending in endings if ending in known), "")
