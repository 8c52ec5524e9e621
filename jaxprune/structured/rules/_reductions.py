"""Rules of reductions, sliding windows, cumulative sums and sorts."""

from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import Fill, Value, is_zero, known
from jaxprune.structured._trace import Trace, shape_of


def _reduce_sum(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), axes = values, eqn.params["axes"]
    exact = trace.complete_sum(
        [(x.labels[i], known(x.fill(i))) for i in axes if not x.zero(i)]
    )
    found = _summed(_without(x, axes))
    return [found if exact else _forgotten(found)]


def _reduce(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), name = values, eqn.primitive.name
    for i in eqn.params["axes"]:
        trace.labels.freeze(x.labels[i], f"{name} runs over it")
    found = _without(x, eqn.params["axes"])
    if any(len(x.labels[i]) == 0 for i in eqn.params["axes"]):
        return [_forgotten(found, zeros=True)]  # Of nothing: 1, or infinity.
    return [found if name in ("reduce_max", "reduce_min") else _summed(found)]


def _summed(x: Value) -> Value:
    """Keeps zeros, but no other number."""
    fills = tuple(f if is_zero(f) else known(f) for f in x.fills)
    number = x.number if x.number is not None and is_zero(x.number) else None
    return x._replace(fills=fills, number=number)


def _forgotten(x: Value, zeros: bool = False) -> Value:
    """Forgets the removed positions, the zeros among them only if asked to."""
    fills = tuple(f if is_zero(f) and not zeros else Fill.UNKNOWN for f in x.fills)
    return x._replace(fills=fills, number=None if zeros else x.number)


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
    return [_summed(x._replace(labels=tuple(labels)))]


def _cumulative(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,) = values
    trace.labels.freeze(
        x.labels[eqn.params["axis"]], f"{eqn.primitive.name} runs on it"
    )
    if eqn.primitive.name == "cumlogsumexp":  # Of n zeros: log n.
        return [x._replace(fills=tuple(map(known, x.fills)), number=None)]
    return [_summed(x)]


def _sort(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axis = eqn.params.get("dimension", eqn.params.get("axis", -1))
    axis %= len(values[0].labels)
    for value in values:
        trace.join(values[0], value)
        trace.labels.freeze(value.labels[axis], f"{eqn.primitive.name} orders it")
    results = []
    for n, out in enumerate(eqn.outvars):
        labels = list(values[0].labels)
        size = shape_of(out)[axis]
        labels[axis] = trace.labels.frozen(size, f"{eqn.primitive.name} orders it")
        fills = []
        for i in range(len(labels)):  # Along other axes, rows are sorted one by one.
            every = [value.fill(i) for value in values]
            number = n < len(every) and not isinstance(every[n], Fill)
            fills.append(every[n] if number else min(map(known, every)))
        fills[axis] = Fill.UNKNOWN
        results.append(Value(tuple(labels), tuple(fills)))
    return results


def _without(x: Value, axes: tuple) -> Value:
    rest = [i for i in range(len(x.labels)) if i not in axes]
    return x._replace(
        labels=tuple(x.labels[i] for i in rest), fills=tuple(x.fills[i] for i in rest)
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
