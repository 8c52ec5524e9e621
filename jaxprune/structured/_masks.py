"""Masks that remove whole channels until a budget is met."""

import bisect
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Real
from jaxprune.core import _checks
from jaxprune.core._per_leaf import is_tree, per_leaf
from jaxprune.structured._groups import (
    Group,
    check_arrays,
    check_groups,
    check_member,
)

Removed = dict[tuple[str, int], list[np.ndarray]]
"""For the path and axis of a leaf: the positions that are removed."""


def structured_mask(
    group_scores: Sequence[Any],
    groups: Sequence[Group],
    params: Any,
    sparsity: Any,
    *,
    scope: str = "global",
    min_keep: Real = 1,
    round_to: int = 1,
    budget: str | Callable[[Any], Real] = "channels",
    protect: Collection[str] = (),
) -> Any:
    """Removes the channels with the lowest scores until a budget is met.

    Channels are removed one by one, lowest score first, until the removed fraction of
    the budget reaches ``sparsity``. Among equal scores the last channel of the last
    group is removed first. ``min_keep``, ``round_to`` and ``protect`` take precedence
    over ``sparsity``; `channel_report` shows the sparsity that was reached.

    Args:
      group_scores: one concrete array of shape (size,) per group, larger = keep.
      groups: the groups, from `channel_groups`.
      params: the parameters, arrays or ``jax.ShapeDtypeStruct``.
      sparsity: the fraction of the budget to remove, in [0, 1). With ``scope="group"``
        and a budget of channels also a tree of fractions like ``params``, such as
        `sparsities` returns: a group loses the fraction of the leaf it is named after.
      scope: "global" ranks the channels of all groups together; with "group" every
        group loses the same fraction of its channels.
      min_keep: the number of channels that every group keeps at least: a whole number,
        or a fraction f in (0, 1) for floor(f size) + 1 (the paper uses 0.05).
      round_to: every narrowed group keeps a multiple of this many channels.
      budget: the quantity that ``sparsity`` is a fraction of. "channels": the channels
        of all groups; exactly ``round(sparsity * channels)`` are removed. "params": the
        entries of ``params``. Or a function ``budget(mask) -> number``, such as
        ``lambda m: cost(fn, params, x, mask=m).sparse_flops``. With the last two, the
        fewest channels are removed that reach the fraction.
      protect: the names of groups that keep all their channels.

    Returns:
      A mask: a tree of bool like ``params``, False on every slice of every member of a
      removed channel, True elsewhere.

    Raises:
      ValueError: if scores and groups do not match, scores hold NaN, an option is out
        of range, or ``protect`` names no group.
      TypeError: if scores have no values (inside ``jit``).

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"v": jnp.ones((2, 1)), "w": jnp.array([[3.0, 1.0], [-4.0, 2.0]])}
      >>> groups = jp.structured.channel_groups(apply_fn, params, jnp.ones((10, 2)))
      >>> scores = jp.structured.group_scores(jp.magnitude(params), groups)
      >>> jp.structured.structured_mask(scores, groups, params, 0.5)["w"]
      Array([[ True, False],
             [ True, False]], dtype=bool)

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021: one global order of all filters.
      Their floor protects the last filters of a layer by index; ours the best.
    """
    if not is_tree(sparsity):
        _checks.check_sparsity(sparsity)
    round_to = _checks.static_count(round_to, "round_to", "channels")
    check_arrays(params)
    if scope not in ("global", "group"):
        raise ValueError(f'scope must be "global" or "group"; got {scope!r}.')
    if not callable(budget) and budget not in ("channels", "params"):
        raise ValueError(
            f'budget must be "channels", "params" or a function of a mask; got '
            f"{budget!r}."
        )
    check_groups(groups)
    _check_members(groups, params)
    _check_protected(groups, protect)
    by_group = scope == "group" and budget == "channels"
    if is_tree(sparsity) and not by_group:
        raise ValueError(
            'A tree of sparsities needs scope="group" and budget="channels": every '
            "group loses its own fraction of channels. Pass one number otherwise."
        )
    scores = _values(group_scores, groups)
    floors = [g.size if g.name in protect else _floor(min_keep, g) for g in groups]
    orders = [np.argsort(-s, kind="stable") for s in scores]  # Best first.
    queue = _queue(scores, orders, floors, scope)

    def rounded(keep: int, group: Group) -> int:
        return min(group.size, -(-keep // round_to) * round_to)

    def gone(keep: Sequence[int]) -> Removed:
        """The positions of all channels but the best ``keep`` of every group."""
        removed: Removed = {}
        for group, order, n in zip(groups, orders, keep, strict=True):
            for m in group.members:
                places = removed.setdefault((m.path, m.axis), [])
                places.append(m.index[order[rounded(n, group) :]].ravel())
        return removed

    if by_group:
        shares = _shares(sparsity, groups, params)
        wanted = [
            g.size - round(n * g.size) for g, n in zip(groups, shares, strict=True)
        ]
        return _mask(params, gone([max(n) for n in zip(wanted, floors, strict=True)]))

    def keep(taken: int) -> list[int]:
        """How many channels each group keeps after the first ``taken`` of the queue."""
        lost = np.bincount(queue[:taken], minlength=len(groups))
        return [g.size - int(n) for g, n in zip(groups, lost, strict=True)]

    def left(taken: int) -> Real:
        """The rest of the budget."""
        if budget == "channels":
            return sum(map(rounded, keep(taken), groups))
        if budget == "params":
            return _count(params, gone(keep(taken)))
        found = budget(_mask(params, gone(keep(taken))))  # pyright: ignore[reportCallIssue]
        if not np.ndim(found) == 0 or found is None or not np.isfinite(found):
            raise ValueError(
                "budget must return a finite number for every mask, such as "
                f"cost(fn, params, x, mask=mask).sparse_flops; got {found!r}."
            )
        return float(found)

    whole = left(0)
    target = float(sparsity) * whole
    if budget == "channels":
        target = round(target)
    taken = bisect.bisect_left(
        range(len(queue)), True, key=lambda n: whole - left(n) >= target
    )
    return _mask(params, gone(keep(taken)))


def _shares(sparsity: Any, groups: Sequence[Group], params: Any) -> list[float]:
    """The sparsity of each group: that of the leaf that it is named after."""
    paths = _checks.leaf_paths(params)
    values = per_leaf(sparsity, params, "sparsity", "params")
    of = dict(zip(paths, values, strict=True))
    for path, value in of.items():
        _checks.check_sparsity(value, f"sparsity of {path}")

    def leaf(group: Group) -> str:
        paths = [member.path for member in group.members]
        named = (p for p in paths if f"{group.name} axis".startswith(f"{p} axis"))
        return next(named, paths[0])

    return [float(of[leaf(group)]) for group in groups]


def _values(group_scores: Sequence[Any], groups: Sequence[Group]) -> list[np.ndarray]:
    """Reads the scores, and raises unless they are those of the groups."""
    if len(group_scores) != len(groups):
        raise ValueError(
            f"There are {len(groups)} groups, but scores for {len(group_scores)}. Pass "
            "the result of group_scores for these groups."
        )
    if not groups:
        raise ValueError(
            "There are no groups, so no channel can be removed. print(groups) shows "
            "which axes are frozen, and why."
        )
    for scores, group in zip(group_scores, groups, strict=True):
        if np.shape(scores) != (group.size,):
            raise ValueError(
                f"The group {group.name} has {group.size} channels, but its scores are "
                f"of shape {np.shape(scores)}."
            )
        if not _checks.is_concrete(scores):
            raise TypeError(
                f"The scores of the group {group.name} have no values. Call "
                "structured_mask outside jit: the shapes of the result depend on it."
            )
        if np.isnan(np.asarray(scores)).any():
            raise ValueError(
                f"The scores of the group {group.name} hold NaN. Look for a loss that "
                "overflows; to mean 'always keep' or 'remove first', use inf or -inf."
            )
    return [np.asarray(scores) for scores in group_scores]


def _check_members(groups: Sequence[Group], params: Any) -> None:
    """Raises unless the parameters have all members of the groups."""
    paths, leaves = _checks.leaf_paths(params), jax.tree.leaves(params)
    shapes = dict(zip(paths, map(np.shape, leaves), strict=True))
    for group in groups:
        for member in group.members:
            if member.path not in shapes:
                raise ValueError(
                    f"The group {group.name} has a member {member.path}, which params "
                    "lacks. Pass groups found for the same params."
                )
            check_member(shapes[member.path], member, group, "params")


def _check_protected(groups: Sequence[Group], protect: Collection[str]) -> None:
    names = [group.name for group in groups]
    for name in [protect] if isinstance(protect, str) else protect:
        if name not in names or isinstance(protect, str):
            raise ValueError(
                f"protect is a collection of names of groups, among {names}; got "
                f"{name!r}."
            )


def _floor(min_keep: Real, group: Group) -> int:
    """The least number of channels that a group keeps."""
    if isinstance(min_keep, float | np.floating) and 0 < min_keep < 1:
        return min(group.size, math.floor(min_keep * group.size) + 1)
    return min(group.size, _checks.static_count(min_keep, "min_keep", "channels"))


def _queue(
    scores: list[np.ndarray], orders: list[np.ndarray], floors: list[int], scope: str
) -> np.ndarray:
    """The order of removal: at each place, the group that loses its worst channel."""
    ranks, numbers = [], []
    for number, (score, order, floor) in enumerate(
        zip(scores, orders, floors, strict=True)
    ):
        worst = order[floor:][::-1]
        share = np.arange(1, len(worst) + 1) / len(order)
        ranks.append(score[worst] if scope == "global" else share)
        numbers.append(np.full(len(worst), number))
    rank, number = np.concatenate(ranks), np.concatenate(numbers)
    return number[np.lexsort((-number, rank))]


def _count(params: Any, removed: Removed) -> int:
    """Counts the entries of the parameters without the removed positions."""
    shapes = {
        path: list(np.shape(leaf))
        for path, leaf in zip(
            _checks.leaf_paths(params), jax.tree.leaves(params), strict=True
        )
    }
    for (path, axis), places in removed.items():
        shapes[path][axis] -= sum(map(len, places))
    return sum(map(math.prod, shapes.values()))


def _mask(params: Any, removed: Removed) -> Any:
    """The mask that is False at every removed position."""

    def leaf(path: tuple[Any, ...], shape: tuple[int, ...]) -> jax.Array:
        mask = np.ones(shape, bool)
        for axis in range(mask.ndim):
            for places in removed.get((_checks.path_str(path), axis), []):
                np.moveaxis(mask, axis, 0)[places] = False
        return jnp.asarray(mask)

    return jax.tree_util.tree_map_with_path(lambda path, p: leaf(path, p.shape), params)
