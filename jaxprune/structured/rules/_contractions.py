"""Rules of matrix products, convolutions and Fourier transforms."""

from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import Fill, Value, is_zero, known
from jaxprune.structured._trace import Trace, shape_of


def _dot_general(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = values
    exact = _summed(trace, left, left_sum, right, right_sum)
    labels, fills = [], []
    for i, j in zip(left_batch, right_batch, strict=True):
        trace.labels.join(left.labels[i], right.labels[j])
        labels.append(left.labels[i])
        fills.append(_times(left.fill(i), right.fill(j)))
    for x, used in (
        (left, (*left_sum, *left_batch)),
        (right, (*right_sum, *right_batch)),
    ):
        for i in range(len(x.labels)):
            if i not in used:
                labels.append(x.labels[i])
                fills.append(0 if x.zero(i) else known(x.fill(i)))
                if x.weight:
                    trace.produce(x.labels[i])
    if not exact:
        fills = [Fill.UNKNOWN if isinstance(f, Fill) else f for f in fills]
    number = 0 if 0 in (left.number, right.number) else None
    return [
        Value(tuple(labels), tuple(fills), left.weight and right.weight, number=number)
    ]


def _times(left: Any, right: Any) -> Any:
    """The fill of a sum of products."""
    if is_zero(left) or is_zero(right):
        return 0
    return min(known(left), known(right))


def _summed(
    trace: Trace, left: Value, left_axes: tuple, right: Value, right_axes: tuple
) -> bool:
    """Joins the axes that a contraction sums over.

    Returns:
      Whether removed positions add nothing to the sum.
    """
    pairs = [(int(i), int(j)) for i, j in zip(left_axes, right_axes, strict=True)]
    added = []
    for i, j in pairs:
        trace.labels.join(left.labels[i], right.labels[j])
        if left.weight != right.weight:
            trace.consume(left.labels[i] if left.weight else right.labels[j])
        fill = _times(left.fill(i), right.fill(j))
        if isinstance(fill, Fill):
            added.append((left.labels[i], fill))
    return trace.complete_sum(added)


def _ragged_dot(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    left, right, sizes = values[:3]
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    summed, batch = numbers.dot_dimension_numbers
    (ragged,), groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    for row in (left.labels[ragged], *[right.labels[i] for i in groups], *sizes.labels):
        trace.labels.freeze(row, "it is split into groups of rows")
    for i, j in zip(*summed, strict=True):
        _summed_exactly(trace, left, i, right, j)
    labels, fills = [], []
    if ragged in summed[0]:  # One product for each group.
        labels.append(trace.labels.frozen(len(sizes.labels[-1]), "groups of rows"))
        fills.append(Fill.UNKNOWN)
    for i, j in zip(*batch, strict=True):
        trace.labels.join(left.labels[i], right.labels[j])
        labels.append(left.labels[i])
        fills.append(_times(left.fill(i), right.fill(j)))
    for x, used in (
        (left, (*summed[0], *batch[0])),
        (right, (*summed[1], *batch[1], *groups)),
    ):
        for i in range(len(x.labels)):
            if i not in used:
                labels.append(x.labels[i])
                fills.append(0 if x.zero(i) else Fill.UNKNOWN)
                if x.weight:
                    trace.produce(x.labels[i])
    return [Value(tuple(labels), tuple(fills), left.weight and right.weight)]


def _summed_exactly(trace: Trace, left: Value, i: int, right: Value, j: int) -> None:
    """Joins two axes that are summed over, which must be 0 at removed positions."""
    trace.labels.join(left.labels[i], right.labels[j])
    if not (left.zero(i) or right.zero(j)):
        trace.freeze_sum(left.labels[i])
    if left.weight != right.weight:
        trace.consume(left.labels[i] if left.weight else right.labels[j])


def _fft(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), lengths = values, eqn.params["fft_lengths"]
    labels, fills = list(x.labels), [f if is_zero(f) else known(f) for f in x.fills]
    for i in range(len(labels) - len(lengths), len(labels)):
        trace.labels.freeze(labels[i], "fft runs over it")
        size = shape_of(eqn.outvars[0])[i]
        labels[i], fills[i] = (
            trace.labels.frozen(size, "fft runs over it"),
            Fill.UNKNOWN,
        )
    return [Value(tuple(labels), tuple(fills), x.weight)]


def _convolution(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    left, right = values
    (batch, feature, *space), (out, into, *window), out_spec = eqn.params[
        "dimension_numbers"
    ]
    shape = shape_of(eqn.outvars[0])
    result = trace.frozen(shape, "a convolution's result")
    labels, fills = list(result.labels), list(result.fills)
    for x, axes, why in (
        (left, space, "it is a spatial axis of a convolution's input"),
        (right, window, "it is a spatial axis of a kernel"),
    ):
        for i in axes:
            trace.labels.freeze(x.labels[i], why)
    labels[out_spec[0]] = left.labels[batch]
    fills[out_spec[0]] = 0 if left.zero(batch) else Fill.UNKNOWN
    outputs = right.labels[out]
    labels[out_spec[1]] = outputs
    fills[out_spec[1]] = 0 if right.zero(out) else Fill.UNKNOWN
    groups = eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] > 1:
        for row in (left.labels[batch], outputs, left.labels[feature]):
            trace.labels.freeze(row, "a convolution groups its batch")
    elif groups == 1:
        _summed_exactly(trace, left, feature, right, into)
    else:
        _grouped(trace, left.labels[feature], outputs, groups)
        trace.labels.freeze(right.labels[into], "it is inside a convolution's group")
    if right.weight and (groups == 1 or len(right.labels[into]) > 1):
        trace.produce(outputs)
    return [Value(tuple(labels), tuple(fills), left.weight and right.weight)]


def _grouped(
    trace: Trace, inputs: np.ndarray, outputs: np.ndarray, groups: int
) -> None:
    """Joins each group's inputs and outputs: a group is kept or removed as a whole."""
    for row in (inputs, outputs):
        if len(row) > 1:
            first = row.reshape(groups, -1)[:, :1]
            trace.labels.join(np.repeat(first, len(row) // groups), row)
    if len(inputs) > 1 and len(outputs) > 1:
        trace.labels.join(
            inputs.reshape(groups, -1)[:, 0], outputs.reshape(groups, -1)[:, 0]
        )


RULES = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "fft": _fft,
    "ragged_dot_general": _ragged_dot,
}
