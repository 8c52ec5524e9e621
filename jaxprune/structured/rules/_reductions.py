"""Rules of reductions, sliding windows, cumulative sums and sorts."""

from jax.extend.core import JaxprEqn

from jaxprune.structured._constant_fill import is_filled
from jaxprune.structured._labels import Value
from jaxprune.structured._trace import Trace, shape_of


def _reduce_sum(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,) = values
    uneven = [int(i) for i in eqn.params["axes"] if not x.zero(int(i))]
    open_axes = [i for i in uneven if not trace.labels.is_frozen(x.labels[i]).all()]
    for i in open_axes:  # The replay knows what one filled axis adds.
        if len(open_axes) > 1 or not is_filled(eqn.invars[0], x, i, trace.filled):
            trace.freeze_sum(x.labels[i])
    return [_without(x, eqn.params["axes"])]


def _reduce(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,) = values
    for i in eqn.params["axes"]:
        trace.labels.freeze(x.labels[i], f"{eqn.primitive.name} runs over it")
    found = _without(x, eqn.params["axes"])
    empty = any(len(x.labels[i]) == 0 for i in eqn.params["axes"])
    return [_nowhere_zero(found) if empty else found]  # Of nothing: 1, or infinity.


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


def _cumulative(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,) = values
    trace.labels.freeze(
        x.labels[eqn.params["axis"]], f"{eqn.primitive.name} runs on it"
    )
    logs = eqn.primitive.name == "cumlogsumexp"  # Of n zeros: log n.
    return [_nowhere_zero(x) if logs else x]


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


def _nowhere_zero(x: Value) -> Value:
    return x._replace(zeros=(False,) * len(x.labels), nil=False)


def _without(x: Value, axes: tuple) -> Value:
    rest = [i for i in range(len(x.labels)) if i not in axes]
    return x._replace(
        labels=tuple(x.labels[i] for i in rest), zeros=tuple(x.zeros[i] for i in rest)
    )


RULES = {
    "argmax": _reduce,
    "argmin": _reduce,
    "cumlogsumexp": _cumulative,
    "cummax": _cumulative,
    "cummin": _cumulative,
    "cumprod": _cumulative,
    "cumsum": _cumulative,
    "reduce_and": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_or": _reduce,
    "reduce_prod": _reduce,
    "reduce_xor": _reduce,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "sort": _sort,
    "top_k": _sort,
}
