"""The rule of reshape: how channels travel through merged and split axes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import ONE, Fill, Value
from jaxprune.structured._trace import Trace, shape_of


def _reshape(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), shape = values, shape_of(eqn.outvars[0])
    old = tuple(len(n) for n in x.labels)
    labels: list[np.ndarray] = [ONE] * len(shape)
    fills: list[Any] = [Fill.UNKNOWN] * len(shape)
    if 0 in old:
        return [trace.frozen(shape, "it is empty")]
    for before, after in _blocks(old, shape):
        if [old[i] for i in before] == [shape[o] for o in after]:
            for i, o in zip(before, after, strict=True):
                labels[o], fills[o] = x.labels[i], x.fills[i]
            continue
        flat, fill = _merged(trace, x, before)
        parts = _parted(trace, flat, [shape[o] for o in after])
        for o, part in zip(after, parts, strict=True):
            labels[o], fills[o] = part, fill
    return [x._replace(labels=tuple(labels), fills=tuple(fills))]


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list, list]]:
    """Cuts two shapes, without ones, into the shortest runs with equal products."""
    left = [i for i, n in enumerate(old) if n != 1]
    right = [i for i, n in enumerate(new) if n != 1]
    blocks = []
    while left:
        before, after = [left.pop(0)], [right.pop(0)]
        while True:
            a = math.prod(old[i] for i in before)
            b = math.prod(new[i] for i in after)
            if a == b:
                break
            if a < b:
                before.append(left.pop(0))
            else:
                after.append(right.pop(0))
        blocks.append((before, after))
    return blocks


def _merged(trace: Trace, x: Value, axes: list[int]) -> tuple[np.ndarray, Any]:
    """Labels of axes merged into one: those of the axis whose channels can be removed.

    If several axes qualify, an axis of a parameter wins over a broadcast axis, then an
    outer one over an inner one (heads over head dimensions). The rest are frozen.
    """
    rows = [x.labels[i] for i in axes]

    def rank(i: int) -> int:
        free = ~trace.labels.is_frozen(rows[i])
        return 2 * bool((free & (trace.labels.find(rows[i]) < trace.owned)).any()) + (
            bool(free.any())
        )

    best = max(range(len(rows)), key=lambda i: (rank(i), -i))
    for i, row in enumerate(rows):
        if i != best:
            trace.labels.freeze(row, "it is merged with another axis by a reshape")
    shape = [1] * len(rows)
    shape[best] = len(rows[best])
    sizes = [len(row) for row in rows]
    flat = np.broadcast_to(rows[best].reshape(shape), sizes).reshape(-1)
    fill = x.fills[axes[best]]  # A number, or not even along the other axes.
    return flat, min(fill, Fill.KNOWN) if isinstance(fill, Fill) else fill


def _parted(trace: Trace, flat: np.ndarray, shape: list[int]) -> list[np.ndarray]:
    """Labels of the axes that one axis is split into.

    The new axis along which the classes vary takes them. If they vary along several
    (heads and head dimensions, groups and their channels), the outer axis does unless
    ``trace.choices`` picks another, and all positions with the same index along it are
    removed together.
    """
    why = "it is the inner part of an axis split by a reshape"
    if len(shape) == 1:
        return [flat]
    number = trace.count_split()
    grid, roots = flat.reshape(shape), trace.labels.find(flat).reshape(shape)
    varies = [
        bool((roots != np.take(roots, [0], axis)).any()) for axis in range(len(shape))
    ]
    if trace.labels.is_frozen(flat).all() or not any(varies):
        trace.labels.freeze(flat, why)
        return [trace.labels.frozen(n, why) for n in shape]
    options = np.flatnonzero(varies)
    choice = trace.choices.get(number, 0)
    outer = int(options[min(choice, len(options) - 1)])
    rows = np.moveaxis(grid, outer, 0).reshape(shape[outer], -1)
    if len(options) > 1:
        trace.splits[number] = rows[:, 0], len(options)
        trace.labels.join(np.repeat(rows[:, 0], rows.shape[1]), rows.reshape(-1))
    parts = [trace.labels.frozen(n, why) for n in shape]
    parts[outer] = rows[:, 0]
    return parts


RULES = {
    "reshape": _reshape,
}
