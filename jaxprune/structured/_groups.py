"""Groups of channels that must be removed together, of any function, from its jaxpr."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.core import _checks
from jaxprune.structured._analysis import trace_function
from jaxprune.structured._trace import Trace

_LAST = 1 << 60  # When raw parameters are produced.


class Member(NamedTuple):
    """The channels of a group in one leaf.

    Attributes:
      path: the path of the leaf, as ``conv/kernel``.
      axis: the axis of the leaf that holds the channels.
      index: an array of shape (size, repeats): row c holds the positions of channel c.
      produces: whether they are output channels (filters) of the leaf. False for the
        inputs of a consumer and the entries of a norm's scale.
    """

    path: str
    axis: int
    index: np.ndarray
    produces: bool


class Group(NamedTuple):
    """Channels of one kind; each is removed from all members at once.

    Attributes:
      name: the path of the leaf that first produces them; followed by its axis where
        two groups share a leaf.
      size: the number of channels.
      members: the channels in each leaf.
    """

    name: str
    size: int
    members: tuple[Member, ...]


class Frozen(NamedTuple):
    """Positions along an axis of a leaf that are never removed, with the reason.

    Attributes:
      path: the leaf's path.
      axis: its axis.
      positions: the number of frozen positions.
      reason: why they are frozen.
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
        """Makes the tuple."""
        made = super().__new__(cls, groups)
        made.frozen = frozen
        return made

    def __repr__(self) -> str:
        """Writes the groups, their members, and the frozen axes."""
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
    ``params`` gets a label. The labels are followed through the equations, and labels
    of positions that an equation combines are joined. Labels are frozen if they reach
    an input or an output, belong to a spatial axis of a kernel, or pass through a
    primitive that has no rule. Each remaining set of joined positions is a *channel*:
    setting all its slices to 0 gives the same outputs as removing them. Channels in
    the same axes of the same leaves form a group.

    A sum over channels is followed if the share of the removed channels is known: they
    are 0, or computed from zeros and constants (the squared mean in a variance, fixed
    positions that are added before a norm). So norms over channels are followed, but
    softmax and maxima over channels freeze them. Lookups are assumed to be in range,
    unless they fill with a number of the user's (not NaN, not the dtype's default). An
    output that is the new value of a parameter (running statistics) is narrowed with
    the parameter. It must have the parameter's labels, and its path must end in the
    same two names (or the same name, if either path has only one; indices into
    sequences are not names).

    If a reshape splits an axis into several (heads and head dimensions), channels are
    removed along the outer one. Grouped convolutions lose whole groups.

    Args:
      fn: any traceable function, ``fn(params, *inputs)``.
      params: the parameters, and anything that is narrowed with them (running
        statistics): any pytree of arrays or ``jax.ShapeDtypeStruct``.
      *inputs: the other arguments, arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      A tuple of `Group`, in the order in which the function produces them. Its
      attribute ``frozen`` lists the axes that cannot be narrowed. ``print`` shows the
      members of every group, and the frozen axes with their reasons. Groups of a
      single channel are frozen.

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
                f"{type(leaf).__name__}, not an array. Close over anything that is not "
                "an array."
            )


class _Reader:
    """Reads the groups from a finished trace."""

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
        """Sorts the classes that may be removed by the axes that contain them.

        Two classes are of one kind if they have the same number of positions along
        every axis. Returns, for every kind, pairs of the number of an axis and the
        positions along it, one row per class.
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
        """Makes a group, with the time it is first produced; None if it is frozen."""
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
    """Names groups by their leaf, with an axis and a number only where needed."""
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
