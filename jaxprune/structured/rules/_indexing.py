"""Rules of lookups and of slices at positions that are only known when it runs."""

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import ONE, Value
from jaxprune.structured._trace import Trace, shape_of


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


def _dynamic_slice(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, labels = values[0], []
    for row, size in zip(x.labels, eqn.params["slice_sizes"], strict=True):
        if size != len(row):
            trace.labels.freeze(row, "it is sliced at a dynamic place")
            row = trace.labels.frozen(size, "a dynamic slice")
        labels.append(row)
    return [x._replace(labels=tuple(labels), weight=all(v.weight for v in values))]


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


RULES = {
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _update,
    "gather": _gather,
}
