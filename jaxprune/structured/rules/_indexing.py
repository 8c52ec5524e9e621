"""Rules of reads and writes at indices: lookups, scatters, dynamic slices."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import (
    ONE,
    Fill,
    Value,
    either,
    is_zero,
    known,
    same_number,
)
from jaxprune.structured._trace import Trace, shape_of


def _gather(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, indices = values
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    out = shape_of(eqn.outvars[0])
    batch = _pairs(numbers.start_indices_batching_dims, numbers)
    whole = [n == len(row) for n, row in zip(sizes, x.labels, strict=True)]
    for i, row in enumerate(x.labels):
        if not whole[i] and i not in batch.values():
            trace.labels.freeze(row, "it is looked up by an index")
    trace.labels.freeze(indices.labels[-1], "it is an index")
    filler = _filler(eqn)
    labels: list[np.ndarray] = [ONE] * len(out)
    fills: list[Any] = [Fill.UNKNOWN] * len(out)
    rows = [o for o in range(len(out)) if o not in numbers.offset_dims]
    for j, o in enumerate(rows):
        labels[o] = indices.labels[j]
        if j in batch:  # Each position along it is looked up on its own.
            trace.labels.join(labels[o], x.labels[batch[j]])
            fills[o] = _moved(either((x.fill(batch[j]), *filler)), indices.fill(j))
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(x.labels)) if i not in gone]
    for o, i in zip(map(int, numbers.offset_dims), kept, strict=True):
        if not whole[i]:
            labels[o] = trace.labels.frozen(out[o], "a lookup")
            continue
        labels[o], fills[o] = x.labels[i], either((x.fill(i), *filler))
        if x.weight and not indices.weight:
            trace.produce(x.labels[i])
    number = same_number((x.number, *filler))
    weight = x.weight and indices.weight
    return [Value(tuple(labels), tuple(fills), weight, number=number)]


def _pairs(indices: Sequence[int], numbers: Any) -> dict[int, int]:
    """The axes of indices and operand along which each position has its own index."""
    operands = map(int, numbers.operand_batching_dims)
    return dict(zip(map(int, indices), operands, strict=True))


def _moved(fill: Any, by: Any) -> Any:
    """The fill of entries that other entries put in order: a number stays."""
    return min(fill, known(by)) if isinstance(fill, Fill) else fill


def _filler(eqn: JaxprEqn) -> list[Any]:
    """The number that stands for lookups out of range, if they have a meaning.

    By default they fill with NaN, or with the outermost integer: such indices are taken
    to be errors.
    """
    number, dtype = eqn.params["fill_value"], eqn.invars[0].aval.dtype  # pyright: ignore[reportAttributeAccessIssue]
    if number is None or number != number:
        return []
    if jnp.issubdtype(dtype, jnp.integer):
        bounds = jnp.iinfo(dtype)
        if number == (bounds.min or bounds.max):
            return []
    return [number]


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
    fills = tuple(either((x.fill(i), new.fill(i))) for i in range(len(x.labels)))
    number = same_number((x.number, new.number))
    weight = all(v.weight for v in values)
    return [Value(x.labels, fills, weight, number=number)]


def _scatter(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, indices, new = values
    numbers = eqn.params["dimension_numbers"]
    trace.labels.freeze(indices.labels[-1], "it is an index")
    batch = _pairs(numbers.scatter_indices_batching_dims, numbers)
    fills: list[Any] = [Fill.UNKNOWN] * len(x.labels)
    rows = [u for u in range(len(new.labels)) if u not in numbers.update_window_dims]
    for j, u in enumerate(rows):
        trace.labels.join(indices.labels[j], new.labels[u])
        if j in batch:  # Each position along it is written on its own.
            i = batch[j]
            trace.labels.join(x.labels[i], new.labels[u])
            fills[i] = _moved(_written(eqn, x.fill(i), new.fill(u)), indices.fill(j))
        else:
            trace.labels.freeze(new.labels[u], "it is written at an index")
    for i in numbers.inserted_window_dims:
        trace.labels.freeze(x.labels[i], "it is written at an index")
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(x.labels)) if i not in gone]
    for i, u in zip(kept, map(int, numbers.update_window_dims), strict=True):
        if len(x.labels[i]) == len(new.labels[u]):
            trace.labels.join(x.labels[i], new.labels[u])
            fills[i] = _written(eqn, x.fill(i), new.fill(u))
        else:
            for row in (x.labels[i], new.labels[u]):
                trace.labels.freeze(row, "it is written at an index")
    weight = all(v.weight for v in values)
    return [Value(x.labels, tuple(fills), weight)]


def _written(eqn: JaxprEqn, old: Any, new: Any) -> Any:
    """What a scatter makes of entries with these fills."""
    name = eqn.primitive.name
    if name == "scatter" and eqn.params["update_jaxpr"] is not None:
        return Fill.UNKNOWN  # By a function of the user's.
    if name == "scatter-mul" and is_zero(old):
        return old
    found = either((old, new))
    if name in ("scatter-add", "scatter-mul", "scatter-sub") and not is_zero(found):
        return known(found)
    return found


RULES = {
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _update,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter-max": _scatter,
    "scatter-min": _scatter,
    "scatter-mul": _scatter,
    "scatter-sub": _scatter,
}
