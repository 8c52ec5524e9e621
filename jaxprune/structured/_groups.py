"""Groups of channels that must be removed together, of any function, from its jaxpr."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.core import _checks
from jaxprune.structured._trace import Trace, trace_function

_LAST = 1 << 60  # When raw parameters are produced.


class Member(NamedTuple):
    """Where the channels of a group lie in one leaf.

    Attributes:
      path: the path of the leaf, as ``conv/kernel``.
      axis: the axis of the leaf along which they lie.
      index: an array of shape (size, repeats): row c holds the positions of channel c.
      produces: whether they are the leaf's output channels (filters), not the inputs of
        a consumer, nor the entries of a normalisation's scale.
    """

    path: str
    axis: int
    index: np.ndarray
    produces: bool


class Group(NamedTuple):
    """Channels of one kind, each of which is removed from all members at once.

    Attributes:
      name: the path of the leaf that first produces them; followed by its axis where
        two groups share a leaf.
      size: how many channels there are.
      members: where they lie.
    """

    name: str
    size: int
    members: tuple[Member, ...]


class Frozen(NamedTuple):
    """Positions along an axis of a leaf that are never removed, and why.

    Attributes:
      path: the leaf's path.
      axis: its axis.
      positions: how many positions along it.
      reason: what they meet or reach.
    """

    path: str
    axis: int
    positions: int
    reason: str


class Groups(tuple[Group, ...]):
    """The groups of a function: a tuple, and a table when printed.

    Attributes:
      frozen: every axis of a leaf that cannot be narrowed, in full or in part.
    """

    frozen: tuple[Frozen, ...]

    def __new__(cls, groups: Any, frozen: tuple[Frozen, ...] = ()) -> "Groups":
        """Makes the tuple of the groups."""
        made = super().__new__(cls, groups)
        made.frozen = frozen
        return made

    def __repr__(self) -> str:
        """Writes the groups, their members, and what is frozen."""
        shown = [f for f in self.frozen if f.positions > 1]
        lines = []
        for group in self:
            lines.append(f"{group.name}: {group.size} channels")
            for m in group.members:
                times = f" x{m.index.shape[1]}" if m.index.shape[1] > 1 else ""
                role = "  (produces)" if m.produces else ""
                lines.append(f"  {m.path}, axis {m.axis}{times}{role}")
        if shown:
            lines.append("frozen:")
        lines += [f"  {f.path}, axis {f.axis}: {f.reason}" for f in shown]
        return "\n".join(lines)


def channel_groups(fn: Callable[..., Any], params: Any, *inputs: Any) -> Groups:
    """Finds the channels of a function that must be removed together.

    The function is traced, never run. Every position along every axis of every leaf of
    ``params`` gets a label, and the labels are followed through the equations: where
    arrays meet, position by position, labels are joined. Labels that reach an input or
    an output, the spatial axes of kernels, and whatever a primitive without a rule
    touches are frozen. Each remaining set of joined positions is a *channel*: if all
    its slices are 0, the function's output is that of the function without them.
    Channels that lie in the same axes of the same leaves form a group.

    A sum over channels is followed if a removed channel adds 0 to it, or one and the
    same number as every other removed channel (the squared mean, in a variance). So a
    normalisation over channels is followed; softmax and maxima over channels freeze
    them. An output that is the new value of a parameter (running statistics) is
    narrowed with it: one that has its labels, and a path whose last two names are the
    same (or the last, where one has no more; places in sequences are not names).

    An axis that a reshape splits in several that matter (heads and the dimensions
    inside them) is removed by the outer one; grouped convolutions lose whole groups.

    Args:
      fn: any traceable function.
      params: the parameters and whatever else is to be narrowed with them (running
        statistics), any pytree of arrays or ``jax.ShapeDtypeStruct``.
      *inputs: the other arguments, arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The groups, in the order in which the function produces them: a tuple of `Group`,
      with an attribute ``frozen``. Printed, it lists members, and what is frozen where
      and why. Groups of a single channel are frozen.

    Raises:
      TypeError: if a leaf of ``params`` is not an array.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
      >>> params = {"b": jnp.ones((1, 4)), "v": jnp.ones((4, 2)), "w": jnp.ones((8, 4))}
      >>> groups = jp.structured.channel_groups(apply_fn, params, jnp.ones((10, 8)))
      >>> print(groups)
      w: 4 channels
        b, axis 1
        v, axis 0
        w, axis 1  (produces)
      frozen:
        v, axis 1: reaches output (root), axis 1
        w, axis 0: meets input 0, axis 1
    """
    check_arrays(params)
    trace, *_ = trace_function(fn, params, inputs)
    return _Reader(trace, _checks.leaf_paths(params)).groups()


def check_groups(groups: Any) -> None:
    """Raises unless every one of ``groups`` is a `Group`."""
    if isinstance(groups, Group) or not all(isinstance(g, Group) for g in groups):
        raise TypeError(
            "groups must be what channel_groups(fn, params, *inputs) returned; got "
            f"{_checks.described(groups)}."
        )


def check_member(shape: tuple[int, ...], member: Member, group: Group, of: str) -> None:
    """Raises unless a leaf of a shape has the positions of a member."""
    last = int(member.index.max())
    if len(shape) <= member.axis or shape[member.axis] <= last:
        raise ValueError(
            f"The leaf {member.path} of {of} is {shape}, but the group {group.name} "
            f"has a channel at position {last} of its axis {member.axis}. Pass groups "
            "found for the same params."
        )


def check_arrays(params: Any) -> None:
    """Raises unless every leaf of ``params`` is an array, or looks like one."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"params: the leaf {_checks.path_str(path)} is a "
                f"{type(leaf).__name__}, not an array. Close over what is not an array."
            )


class _Reader:
    """Reads groups off a finished trace."""

    def __init__(self, trace: Trace, paths: list[str]) -> None:
        self._trace, self._paths = trace, paths
        self._axes = [
            (leaf, axis, labels)
            for leaf, axes in enumerate(trace.axes)
            for axis, labels in enumerate(axes)
        ]

    def groups(self) -> Groups:
        found = [self._group(places) for places in self._kinds()]
        made = sorted((pair for pair in found if pair), key=lambda pair: pair[0])
        return Groups(_named([group for _, group in made]), self._frozen())

    def _kinds(self) -> list[list[tuple[int, np.ndarray]]]:
        """Sorts the classes that may be removed by the axes that they lie in.

        Returned for every kind are the numbers of its axes, and for each of these the
        positions, one row a class. Classes are told apart axis by axis: two are of one
        kind as long as they have equally many positions along every axis so far.
        """
        labels, free, roots = self._trace.labels, [], []
        for _, _, row in self._axes:
            free.append(np.flatnonzero(~labels.is_frozen(row)))
            roots.append(labels.find(row)[free[-1]])
        known = np.unique(np.concatenate([np.zeros(0, np.int64), *roots]))
        kind, last = np.zeros(len(known), np.int64), 0
        rows = [np.searchsorted(known, found) for found in roots]
        for row in rows:
            present, counts = np.unique(row, return_counts=True)
            key = kind[present] * (1 + counts.max(initial=0)) + counts
            told, apart = np.unique(key, return_inverse=True)
            kind[present] = last + 1 + apart
            last += len(told)
        members: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for number, (row, places) in enumerate(zip(rows, free, strict=True)):
            order = np.argsort(row, kind="stable")
            kinds = kind[row[order]]
            for one in np.unique(kinds):
                chosen = order[kinds == one]
                size = len(np.unique(row[chosen]))
                index = places[chosen].reshape(size, -1)
                members[int(one)].append((number, index))
        return list(members.values())

    def _group(self, places: list[tuple[int, np.ndarray]]) -> tuple[int, Group] | None:
        """Makes a group, and says when it is first produced; None if it is frozen."""
        rows = [self._axes[axis][2][index] for axis, index in places]
        made = [self._trace.produced[row] for row in rows]
        starts = [int(when[when > 0].min()) if when.any() else 0 for when in made]
        if not any(starts) and len(rows) > 1:  # Raw parameters may be the channels.
            consumed = self._trace.consumed
            starts = [0 if consumed[row].any() else _LAST for row in rows]
        size = len(rows[0])
        why = (
            "all its positions are coupled"
            if size == 1
            else "no parameter produces it, or nothing reads it" * (not any(starts))
        )
        if why:
            for row in rows:
                self._trace.labels.freeze(row.ravel(), why)
            return None
        members = tuple(
            Member(
                self._paths[self._axes[axis][0]], self._axes[axis][1], index, when > 0
            )
            for (axis, index), when in zip(places, starts, strict=True)
        )
        first = min(start for start in starts if start)
        leader = members[starts.index(first)]
        name = f"{leader.path}\n{leader.axis}"
        return first, Group(name, size, members)

    def _frozen(self) -> tuple[Frozen, ...]:
        labels, found = self._trace.labels, []
        for leaf, axis, row in self._axes:
            places = np.flatnonzero(labels.is_frozen(row))
            if len(places):
                reason = labels.reason(row[places[0]])
                found.append(Frozen(self._paths[leaf], axis, len(places), reason))
        return tuple(found)


def _named(groups: list[Group]) -> list[Group]:
    """Names groups by their leaf, with its axis, and a number, only where needed."""
    leaves = Counter(group.name.split("\n")[0] for group in groups)
    whole = Counter(group.name for group in groups)
    numbers: Counter[str] = Counter()
    named = []
    for group in groups:
        path, axis = group.name.split("\n")
        numbers[group.name] += 1
        name = path if leaves[path] == 1 else f"{path} axis {axis}"
        if whole[group.name] > 1:
            name += f" #{numbers[group.name]}"
        named.append(group._replace(name=name))
    return named
