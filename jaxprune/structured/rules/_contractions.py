"""Rules of matrix products and convolutions."""

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import Value
from jaxprune.structured._trace import Trace, shape_of


def _dot_general(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = values
    _summed(trace, left, left_sum, right, right_sum)
    labels, zeros = [], []
    for i, j in zip(left_batch, right_batch, strict=True):
        trace.labels.join(left.labels[i], right.labels[j])
        labels.append(left.labels[i])
        zeros.append(left.zero(int(i)) or right.zero(int(j)))
    for x, used in (
        (left, (*left_sum, *left_batch)),
        (right, (*right_sum, *right_batch)),
    ):
        for i in range(len(x.labels)):
            if i not in used:
                labels.append(x.labels[i])
                zeros.append(x.zero(i))
                if x.weight:
                    trace.produce(x.labels[i])
    weight, nil = left.weight and right.weight, left.nil or right.nil
    return [Value(tuple(labels), tuple(zeros), weight, nil)]


def _summed(
    trace: Trace, left: Value, left_axes: tuple, right: Value, right_axes: tuple
) -> None:
    """Joins the axes that a contraction sums over."""
    for i, j in zip(left_axes, right_axes, strict=True):
        trace.labels.join(left.labels[i], right.labels[j])
        if not (left.zero(int(i)) or right.zero(int(j))):
            trace.freeze_sum(left.labels[i])
            trace.freeze_sum(right.labels[j])
        if left.weight != right.weight:
            trace.consume(left.labels[i] if left.weight else right.labels[j])


def _convolution(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    left, right = values
    (batch, feature, *space), (out, into, *window), out_spec = eqn.params[
        "dimension_numbers"
    ]
    shape = shape_of(eqn.outvars[0])
    result = trace.frozen(shape, "a convolution's result")
    labels, zeros = list(result.labels), list(result.zeros)
    for x, axes, why in (
        (left, space, "it is a spatial axis of a convolution's input"),
        (right, window, "it is a spatial axis of a kernel"),
    ):
        for i in axes:
            trace.labels.freeze(x.labels[i], why)
    labels[out_spec[0]], zeros[out_spec[0]] = left.labels[batch], left.zero(batch)
    outputs = right.labels[out]
    labels[out_spec[1]], zeros[out_spec[1]] = outputs, right.zero(out)
    groups = eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] > 1:
        for row in (left.labels[batch], outputs, left.labels[feature]):
            trace.labels.freeze(row, "a convolution groups its batch")
    elif groups == 1:
        _summed(trace, left, (feature,), right, (into,))
    else:
        _grouped(trace, left.labels[feature], outputs, groups)
        trace.labels.freeze(right.labels[into], "it is inside a convolution's group")
    if right.weight and (groups == 1 or len(right.labels[into]) > 1):
        trace.produce(outputs)
    return [Value(tuple(labels), tuple(zeros), left.weight and right.weight)]


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
}
