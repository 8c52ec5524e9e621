"""Groups that the user declares: heads, experts and other slices of leaves."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxprune.core import _checks
from jaxprune.structured._groups import Group, Groups, Member, check_arrays


def slice_groups(
    params: Any, axes: Mapping[str, int], size: int, *, within: int = 1
) -> Groups:
    """Declares slices of leaves that are removed together, such as heads or experts.

    `channel_groups` finds channels whose removal is the same as setting them to 0.
    Removing query heads that share keys and values, or experts that share a router, is
    not: the same function then runs at a smaller size. Declare the slices, score them,
    choose with `structured_mask`, and cut the parameters and the optimizer state with
    `narrow`. Nothing is traced, so your function must read its sizes from shapes.
    `shrink` needs groups from `channel_groups`.

    Each axis is cut into ``size`` equal slices, in order. ``within`` divides them, in
    order, into that many groups, such as the query heads that share one key. With the
    scope "group", `structured_mask` removes the same number from each group.

    Args:
      params: the parameters, arrays or ``jax.ShapeDtypeStruct``.
      axes: maps the path of each leaf, such as "attention/q", to the axis to cut.
      size: the number of slices, such as heads or experts.
      within: the number of groups: 1, or the number of key-value heads.

    Returns:
      ``within`` groups, in which every leaf counts as a producer.

    Raises:
      ValueError: if a leaf is missing, an axis is out of range or its size is not a
        multiple of ``size``, ``size`` is not a multiple of ``within``, or ``axes`` is
        empty.
      TypeError: if an axis is not an integer, or a leaf of ``params`` is not an array.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"q": jnp.ones((6, 8)), "k": jnp.ones((6, 4)), "o": jnp.ones((8, 6))}
      >>> groups = jp.structured.slice_groups(params, {"q": 1, "o": 0}, 4, within=2)
      >>> print(groups)
      q #1: 2 channels
        q, axis 1 x2  (produces)
        o, axis 0 x2  (produces)
      q #2: 2 channels
        q, axis 1 x2  (produces)
        o, axis 0 x2  (produces)
      >>> scores = [jnp.array([1.0, 2.0]), jnp.array([4.0, 3.0])]
      >>> mask = jp.structured.structured_mask(
      ...     scores, groups, params, 0.5, scope="group"
      ... )
      >>> small = jp.structured.narrow(params, mask, groups)
      >>> {name: leaf.shape for name, leaf in small.items()}
      {'k': (6, 4), 'o': (4, 6), 'q': (6, 4)}
    """
    check_arrays(params)
    size = _checks.static_count(size, "size", "slices")
    within = _checks.static_count(within, "within", "groups")
    if size % within:
        raise ValueError(
            f"size must be a multiple of within, so that groups are alike; got "
            f"size={size}, within={within}."
        )
    if not axes:
        raise ValueError("axes names no leaf. Pass a dict such as {'q': 1, 'o': 0}.")
    leaves = dict(zip(_checks.leaf_paths(params), jax.tree.leaves(params), strict=True))
    members = [_member(leaves, path, axis, size) for path, axis in axes.items()]
    first = next(iter(axes))
    each = size // within
    groups = []
    for i in range(within):
        mine = slice(i * each, (i + 1) * each)
        cut = tuple(m._replace(index=m.index[mine]) for m in members)
        name = first if within == 1 else f"{first} #{i + 1}"
        groups.append(Group(name, each, cut))
    return Groups(groups)


def _member(leaves: dict[str, Any], path: str, axis: int, size: int) -> Member:
    """All slices of one leaf."""
    axis = _checks.check_axis(axis, f"axes[{path!r}]")
    if path not in leaves:
        raise ValueError(
            f"params has no leaf {path}; its leaves are {', '.join(leaves)}."
        )
    shape = np.shape(leaves[path])
    if not -len(shape) <= axis < len(shape) or shape[axis] % size:
        raise ValueError(
            f"The leaf {path} of shape {shape} cannot be cut in {size} slices along "
            f"axis {axis}: pass an axis whose size is a multiple of {size}."
        )
    axis %= len(shape)
    return Member(path, axis, np.arange(shape[axis]).reshape(size, -1), True)
