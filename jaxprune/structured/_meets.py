"""Rules of the primitives that compute: elementwise, contractions, reductions."""

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.structured._even import ELEMENTWISE, is_even
from jaxprune.structured._labels import ONE, Value
from jaxprune.structured._moves import rule
from jaxprune.structured._trace import Trace, shape_of, unknown

# Elementwise, and f(0, ..., 0) = 0: removed positions stay 0 if all operands are.
_KEEPING = (
    "abs add add_any asin asinh atan atan2 atanh bessel_i1e cbrt ceil complex conj "
    "convert_element_type copy copy_p device_put erf erf_inv expm1 floor imag log1p "
    "max min name neg pvary real reduce_precision reshard round sharding_constraint "
    "sign sin sinh sqrt square stop_gradient sub tan tanh xor or"
)
# A product is 0 where one factor is.
_PRODUCTS = "mul and"
_FORGETTING = (
    "acos acosh bessel_i0e clamp clz cos cosh digamma eq eq_to erfc exp exp2 ge gt "
    "igamma igamma_grad_a igammac is_finite le le_to lgamma log log2 logistic lt lt_to "
    "ne nextafter not one_minus_square polygamma polynomial pow population_count "
    "regularized_incomplete_beta rsqrt shift_left shift_right_arithmetic "
    "shift_right_logical zeta"
)


ELEMENTWISE.update([*_KEEPING.split(), *_PRODUCTS.split(), *_FORGETTING.split()])
ELEMENTWISE.update(["div", "rem", "integer_pow", "select_n"])


@rule(*_KEEPING.split())
def _keeping(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    met = _met(trace, eqn, values)
    zeros = [all(v.zero(i) for v in _ranked(values, i)) for i in range(len(met.zeros))]
    scalars_zero = all(v.nil for v in values if not v.labels)
    zeros = tuple(z and scalars_zero for z in zeros)
    return [met._replace(zeros=zeros, nil=all(v.nil for v in values))]


@rule(*_PRODUCTS.split())
def _products(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    met = _met(trace, eqn, values)
    zeros = tuple(
        any(v.zero(i) for v in _ranked(values, i)) for i in range(len(met.zeros))
    )
    return [met._replace(zeros=zeros, nil=any(v.nil for v in values))]


@rule("div", "rem")
def _quotient(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    # 0/0 where the divisor of a removed position is 0 too is left to the masked model.
    met, top = _met(trace, eqn, values), values[0]
    zeros = tuple(bool(top.labels) and top.zero(i) for i in range(len(met.zeros)))
    return [met._replace(zeros=zeros, nil=top.nil)]


@rule("integer_pow")
def _integer_pow(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return (_keeping if eqn.params["y"] > 0 else _forgetting)(trace, eqn, values)


@rule("select_n")
def _select(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    met = _met(trace, eqn, values)
    cases = values[1:]
    zeros = tuple(all(v.zero(i) for v in cases) for i in range(len(met.zeros)))
    return [met._replace(zeros=zeros, nil=all(v.nil for v in cases))]


@rule(*_FORGETTING.split())
def _forgetting(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return [_met(trace, eqn, values)]


@rule("bitcast_convert_type")
def _bitcast(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    if shape_of(eqn.invars[0]) != shape_of(eqn.outvars[0]):
        return unknown(trace, eqn, values)
    return _forgetting(trace, eqn, values)


@rule("optimization_barrier")
def _identity(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    del trace, eqn
    return values


@rule("iota", "random_bits", "random_wrap", "random_seed", "random_unwrap")
@rule("random_fold_in", "random_split", "threefry2x32", "create_token")
def _born(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Numbers that depend on their position: made at full size, then narrowed."""
    for value in values:
        for labels in value.labels:
            trace.labels.freeze(labels, f"it is an operand of {eqn.primitive.name}")
    weight = all(v.weight for v in values)
    return [trace.fresh(shape_of(o))._replace(weight=weight) for o in eqn.outvars]


def _met(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> Value:
    """Joins, axis by axis, the labels of arrays of one shape (ones are broadcast)."""
    labels = []
    for i in range(len(shape_of(eqn.outvars[0]))):
        rows = [v.labels[i] for v in _ranked(values, i) if len(v.labels[i]) != 1]
        if not rows:
            labels.append(ONE)
            continue
        for row in rows[1:]:
            trace.labels.join(rows[0], row)
        owned = [row for row in rows if row.size and row[0] < trace.owned]
        labels.append((owned or rows)[0])  # A parameter's own labels say what it is.
    weight = all(v.weight for v in values)
    return Value(tuple(labels), (False,) * len(labels), weight)


def _ranked(values: list[Value], axis: int) -> list[Value]:
    return [v for v in values if len(v.labels) > axis]


@rule("dot_general")
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
            _not_zero(trace, left.labels[i])
            _not_zero(trace, right.labels[j])
        if left.weight != right.weight:
            trace.consume(left.labels[i] if left.weight else right.labels[j])


def _not_zero(trace: Trace, labels: np.ndarray) -> None:
    trace.labels.freeze(
        labels, "it is summed over where a removed channel would not be 0"
    )


@rule("conv_general_dilated")
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


@rule("reduce_sum")
def _reduce_sum(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,) = values
    uneven = [int(i) for i in eqn.params["axes"] if not x.zero(int(i))]
    open_axes = [i for i in uneven if not trace.labels.is_frozen(x.labels[i]).all()]
    for i in open_axes:  # What one even axis adds the replay knows.
        if len(open_axes) > 1 or not is_even(eqn.invars[0], x, i, trace.even):
            _not_zero(trace, x.labels[i])
    return [_without(x, eqn.params["axes"])]


@rule(*"reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor".split())
@rule("argmax", "argmin")
def _reduce(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,) = values
    for i in eqn.params["axes"]:
        trace.labels.freeze(x.labels[i], f"{eqn.primitive.name} runs over it")
    found = _without(x, eqn.params["axes"])
    empty = any(len(x.labels[i]) == 0 for i in eqn.params["axes"])
    return [_nowhere_zero(found) if empty else found]  # Of nothing: 1, or infinity.


def _nowhere_zero(x: Value) -> Value:
    return x._replace(zeros=(False,) * len(x.labels), nil=False)


def _without(x: Value, axes: tuple) -> Value:
    rest = [i for i in range(len(x.labels)) if i not in axes]
    return x._replace(
        labels=tuple(x.labels[i] for i in rest), zeros=tuple(x.zeros[i] for i in rest)
    )


@rule(*"reduce_window_sum reduce_window_max reduce_window_min".split())
def _window(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), at, labels = values, eqn.params, []
    settings = zip(
        at["window_dimensions"],
        at["window_strides"],
        at["padding"],
        at["base_dilation"],
        at["window_dilation"],
        strict=True,
    )
    shape = shape_of(eqn.outvars[0])
    for row, size, setting in zip(x.labels, shape, settings, strict=True):
        if setting != (1, 1, (0, 0), 1, 1):
            trace.labels.freeze(row, "a window slides over it")
            row = trace.labels.frozen(size, "a window slides over it")
        labels.append(row)
    return [x._replace(labels=tuple(labels))]


@rule(*"cumsum cumlogsumexp cummax cummin cumprod".split())
def _cumulative(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,) = values
    trace.labels.freeze(
        x.labels[eqn.params["axis"]], f"{eqn.primitive.name} runs on it"
    )
    logs = eqn.primitive.name == "cumlogsumexp"  # Of n zeros: log n.
    return [_nowhere_zero(x) if logs else x]


@rule("sort", "top_k")
def _sort(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axis = eqn.params.get("dimension", eqn.params.get("axis", -1))
    axis %= len(values[0].labels)
    for i, row in enumerate(values[0].labels):
        for value in values:
            trace.labels.join(row, value.labels[i])
            if i == axis:
                trace.labels.freeze(value.labels[i], f"{eqn.primitive.name} orders it")
    results = []
    for out in eqn.outvars:
        size = shape_of(out)[axis]
        labels = list(values[0].labels)
        labels[axis] = trace.labels.frozen(size, f"{eqn.primitive.name} orders it")
        results.append(Value(tuple(labels), (False,) * len(labels)))
    return results
