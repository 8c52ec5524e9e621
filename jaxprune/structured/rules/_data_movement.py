"""Rules of the primitives that move, repeat, join or select entries."""

from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import ONE, Fill, Value, either, same_number
from jaxprune.structured._trace import Trace, shape_of


def _transpose(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    del trace
    (x,), order = values, eqn.params["permutation"]
    labels = tuple(x.labels[i] for i in order)
    return [x._replace(labels=labels, fills=tuple(x.fills[i] for i in order))]


def _squeeze(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), gone = values, eqn.params["dimensions"]
    return _placed(trace, x, [i for i in range(len(x.labels)) if i not in gone], eqn)


def _expand_dims(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    new = set(eqn.params["dimensions"])
    axes = iter(range(len(values[0].labels)))
    rank = len(shape_of(eqn.outvars[0]))
    order = [-1 if i in new else next(axes) for i in range(rank)]
    return _placed(trace, values[0], order, eqn)


def _broadcast(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    source = {int(o): i for i, o in enumerate(eqn.params["broadcast_dimensions"])}
    rank = len(shape_of(eqn.outvars[0]))
    return _placed(trace, values[0], [source.get(i, -1) for i in range(rank)], eqn)


def _placed(trace: Trace, x: Value, order: Sequence[int], eqn: JaxprEqn) -> list[Value]:
    """Puts the axes of a value in order; an axis -1 is new, of any size."""
    labels, fills = [], []
    for axis, size in zip(order, shape_of(eqn.outvars[0]), strict=True):
        stays = axis >= 0 and len(x.labels[axis]) == size
        labels.append(x.labels[axis] if stays else trace.labels.fresh(size))
        fills.append(x.fills[axis] if stays else Fill.EVEN)
    return [x._replace(labels=tuple(labels), fills=tuple(fills))]


def _rev(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    del trace
    (x,), turned = values, eqn.params["dimensions"]
    labels = [n[::-1] if i in turned else n for i, n in enumerate(x.labels)]
    return [x._replace(labels=tuple(labels))]


def _slice(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), at = values, eqn.params
    strides = at["strides"] or (1,) * len(x.labels)
    ranges = zip(at["start_indices"], at["limit_indices"], strides, strict=True)
    labels = [
        _picked(trace, n, np.arange(*r), "one position of it is singled out")
        for n, r in zip(x.labels, ranges, strict=True)
    ]
    return [x._replace(labels=tuple(labels))]


def _split(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), axis = values, eqn.params["axis"]
    ends = np.cumsum(eqn.params["sizes"])
    parts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        labels, chosen = list(x.labels), np.arange(start, end)
        why = "one position of it is singled out"
        labels[axis] = _picked(trace, labels[axis], chosen, why)
        parts.append(x._replace(labels=tuple(labels)))
    return parts


def _picked(
    trace: Trace, labels: np.ndarray, chosen: np.ndarray, why: str
) -> np.ndarray:
    """Labels of chosen positions; one that is singled out may not be removed."""
    if len(chosen) == 1 and len(labels) > 1:
        trace.labels.freeze(labels[chosen], why)
        return ONE
    return labels[chosen]


def _concatenate(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axis = eqn.params["dimension"]
    labels, fills = [], []
    for i in range(len(values[0].labels)):
        rows = [v.labels[i] for v in values]
        for row in rows[1:] if i != axis else ():
            trace.labels.join(rows[0], row)
        labels.append(np.concatenate(rows) if i == axis else rows[0])
        fill = either(v.fill(i) for v in values)
        fills.append(Fill.UNKNOWN if i == axis and isinstance(fill, Fill) else fill)
    weight, number = (
        all(v.weight for v in values),
        same_number(v.number for v in values),
    )
    return [Value(tuple(labels), tuple(fills), weight, number=number)]


def _stack(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axis, first = eqn.params["axis"], values[0]
    for value in values[1:]:
        trace.join(first, value)
    fills = [either(v.fill(i) for v in values) for i in range(len(first.labels))]
    along = trace.labels.frozen(len(values), "arrays are stacked along it")
    labels = [*first.labels[:axis], along, *first.labels[axis:]]
    fills.insert(axis, Fill.UNKNOWN)
    weight, number = (
        all(v.weight for v in values),
        same_number(v.number for v in values),
    )
    return [Value(tuple(labels), tuple(fills), weight, number=number)]


def _unstack(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), axis = values, eqn.params["axis"]
    trace.labels.freeze(x.labels[axis], "its positions are singled out")
    rest = [i for i in range(len(x.labels)) if i != axis]
    labels = tuple(x.labels[i] for i in rest)
    part = x._replace(labels=labels, fills=tuple(x.fills[i] for i in rest))
    return [part] * len(eqn.outvars)


def _tile(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, shape = values[0], shape_of(eqn.outvars[0])
    labels = [
        np.tile(n, size // len(n)) if len(n) > 1 else trace.labels.fresh(size)
        for n, size in zip(x.labels, shape, strict=True)
    ]
    return [x._replace(labels=tuple(labels))]


def _pad(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, filler = values
    labels, fills, shape = [], [], shape_of(eqn.outvars[0])
    config = zip(x.labels, eqn.params["padding_config"], shape, strict=True)
    for i, (row, (low, high, inner), size) in enumerate(config):
        new, fill = row, either((x.fill(i), filler.fill(0)))
        if min(low, high) < 0 or inner or (len(row) == 1 and size > 1):
            trace.labels.freeze(row, "it is cropped or spaced by a pad")
            new = trace.labels.frozen(size, "it is cropped or spaced by a pad")
        elif low or high:
            edge = trace.labels.frozen(2, "padding")[:1]
            new = np.concatenate([np.repeat(edge, low), row, np.repeat(edge, high)])
        if len(new) != len(row) and isinstance(fill, Fill):
            fill = Fill.UNKNOWN
        labels.append(new)
        fills.append(fill)
    number = same_number((x.number, filler.number))
    return [
        Value(tuple(labels), tuple(fills), x.weight and filler.weight, number=number)
    ]


RULES = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "expand_dims": _expand_dims,
    "pad": _pad,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
