"""Rules of the primitives that move, repeat, join or select entries."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import ONE, Value
from jaxprune.structured._trace import RULES, Trace, shape_of


def rule(*names: str) -> Callable[[Any], Any]:
    """Enters a function in the table of rules."""

    def register(function: Any) -> Any:
        RULES.update({name: function for name in names})
        return function

    return register


def picked(trace: Trace, labels: np.ndarray, chosen: np.ndarray, why: str) -> Any:
    """Labels of chosen positions; one that is singled out may not be removed."""
    if len(chosen) == 1 and len(labels) > 1:
        trace.labels.freeze(labels[chosen], why)
        return ONE
    return labels[chosen]


@rule("transpose")
def _transpose(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    del trace
    (x,), order = values, eqn.params["permutation"]
    labels = tuple(x.labels[i] for i in order)
    return [x._replace(labels=labels, zeros=tuple(x.zeros[i] for i in order))]


@rule("squeeze")
def _squeeze(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), gone = values, eqn.params["dimensions"]
    return _placed(trace, x, [i for i in range(len(x.labels)) if i not in gone], eqn)


@rule("expand_dims")
def _expand_dims(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    new = set(eqn.params["dimensions"])
    axes = iter(range(len(values[0].labels)))
    rank = len(shape_of(eqn.outvars[0]))
    order = [-1 if i in new else next(axes) for i in range(rank)]
    return _placed(trace, values[0], order, eqn)


@rule("broadcast_in_dim")
def _broadcast(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    source = {int(o): i for i, o in enumerate(eqn.params["broadcast_dimensions"])}
    rank = len(shape_of(eqn.outvars[0]))
    return _placed(trace, values[0], [source.get(i, -1) for i in range(rank)], eqn)


def _placed(trace: Trace, x: Value, order: Sequence[int], eqn: JaxprEqn) -> list[Value]:
    """Puts the axes of a value in order; an axis -1 is new, of any size."""
    labels, zeros = [], []
    for axis, size in zip(order, shape_of(eqn.outvars[0]), strict=True):
        stays = axis >= 0 and len(x.labels[axis]) == size
        labels.append(x.labels[axis] if stays else trace.labels.fresh(size))
        zeros.append(stays and x.zeros[axis])
    return [x._replace(labels=tuple(labels), zeros=tuple(zeros))]


@rule("rev")
def _rev(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    del trace
    (x,), turned = values, eqn.params["dimensions"]
    labels = [n[::-1] if i in turned else n for i, n in enumerate(x.labels)]
    return [x._replace(labels=tuple(labels))]


@rule("slice")
def _slice(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), at = values, eqn.params
    strides = at["strides"] or (1,) * len(x.labels)
    ranges = zip(at["start_indices"], at["limit_indices"], strides, strict=True)
    labels = [
        picked(trace, n, np.arange(*r), "one position of it is singled out")
        for n, r in zip(x.labels, ranges, strict=True)
    ]
    return [x._replace(labels=tuple(labels))]


@rule("split")
def _split(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), axis = values, eqn.params["axis"]
    ends = np.cumsum(eqn.params["sizes"])
    parts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        labels, chosen = list(x.labels), np.arange(start, end)
        why = "one position of it is singled out"
        labels[axis] = picked(trace, labels[axis], chosen, why)
        parts.append(x._replace(labels=tuple(labels)))
    return parts


@rule("concatenate")
def _concatenate(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axis = eqn.params["dimension"]
    labels, zeros = [], []
    for i in range(len(values[0].labels)):
        rows = [v.labels[i] for v in values]
        for row in rows[1:] if i != axis else ():
            trace.labels.join(rows[0], row)
        labels.append(np.concatenate(rows) if i == axis else rows[0])
        zeros.append(all(v.zero(i) for v in values))
    weight, nil = all(v.weight for v in values), all(v.nil for v in values)
    return [Value(tuple(labels), tuple(zeros), weight, nil)]


@rule("stack")
def _stack(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axis, first = eqn.params["axis"], values[0]
    for value in values[1:]:
        for row, other in zip(first.labels, value.labels, strict=True):
            trace.labels.join(row, other)
    zeros = [all(v.zero(i) for v in values) for i in range(len(first.labels))]
    along = trace.labels.frozen(len(values), "arrays are stacked along it")
    labels = [*first.labels[:axis], along, *first.labels[axis:]]
    zeros.insert(axis, False)
    weight, nil = all(v.weight for v in values), all(v.nil for v in values)
    return [Value(tuple(labels), tuple(zeros), weight, nil)]


@rule("unstack")
def _unstack(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), axis = values, eqn.params["axis"]
    trace.labels.freeze(x.labels[axis], "its positions are singled out")
    rest = [i for i in range(len(x.labels)) if i != axis]
    labels = tuple(x.labels[i] for i in rest)
    part = x._replace(labels=labels, zeros=tuple(x.zeros[i] for i in rest))
    return [part] * len(eqn.outvars)


@rule("tile")
def _tile(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, shape = values[0], shape_of(eqn.outvars[0])
    labels = [
        np.tile(n, size // len(n)) if len(n) > 1 else trace.labels.fresh(size)
        for n, size in zip(x.labels, shape, strict=True)
    ]
    return [x._replace(labels=tuple(labels))]


@rule("pad")
def _pad(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, filler = values
    labels, shape = [], shape_of(eqn.outvars[0])
    config = zip(x.labels, eqn.params["padding_config"], shape, strict=True)
    for row, (low, high, inner), size in config:
        new = row
        if min(low, high) < 0 or inner or (len(row) == 1 and size > 1):
            trace.labels.freeze(row, "it is cropped or spaced by a pad")
            new = trace.labels.frozen(size, "it is cropped or spaced by a pad")
        elif low or high:
            edge = trace.labels.frozen(2, "padding")[:1]
            new = np.concatenate([np.repeat(edge, low), row, np.repeat(edge, high)])
        labels.append(new)
    weight = x.weight and filler.weight
    zeros = tuple(
        x.zero(i) and (filler.nil or len(n) == len(labels[i]))
        for i, n in enumerate(x.labels)
    )
    return [Value(tuple(labels), zeros, weight, x.nil and filler.nil)]


@rule("gather")
def _gather(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, indices = values
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    out = shape_of(eqn.outvars[0])
    whole = [n == len(row) for n, row in zip(sizes, x.labels, strict=True)]
    for i, row in enumerate(x.labels):
        if not whole[i]:
            trace.labels.freeze(row, "it is looked up by an index")
    fills = eqn.params["fill_value"] not in (None, 0)
    batch = [i for i in range(len(out)) if i not in numbers.offset_dims]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(x.labels)) if i not in gone]
    labels: list[np.ndarray] = [ONE] * len(out)
    zeros = [False] * len(out)
    for o, row in zip(batch, indices.labels[:-1], strict=True):
        labels[o] = row
    trace.labels.freeze(indices.labels[-1], "it is an index")
    for o, i in zip(numbers.offset_dims, kept, strict=True):
        labels[o] = x.labels[i] if whole[i] else trace.labels.frozen(out[o], "a lookup")
        zeros[o] = whole[i] and x.zeros[i] and not fills
        if x.weight and not indices.weight and whole[i]:
            trace.produce(x.labels[i])
    return [
        Value(
            tuple(labels),
            tuple(zeros),
            x.weight and indices.weight,
            x.nil and not fills,
        )
    ]


@rule("dynamic_slice")
def _dynamic_slice(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, labels = values[0], []
    for row, size in zip(x.labels, eqn.params["slice_sizes"], strict=True):
        if size != len(row):
            trace.labels.freeze(row, "it is sliced at a dynamic place")
            row = trace.labels.frozen(size, "a dynamic slice")
        labels.append(row)
    return [x._replace(labels=tuple(labels), weight=all(v.weight for v in values))]


@rule("dynamic_update_slice")
def _update(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, new = values[:2]
    for old, row in zip(x.labels, new.labels, strict=True):
        if len(old) == len(row):
            trace.labels.join(old, row)
        else:
            for part in (old, row):
                trace.labels.freeze(part, "it is written at a dynamic place")
    zeros = tuple(x.zero(i) and new.zero(i) for i in range(len(x.labels)))
    weight = all(v.weight for v in values)
    return [Value(x.labels, zeros, weight, x.nil and new.nil)]
