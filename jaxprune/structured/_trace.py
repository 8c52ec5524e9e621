"""Follows labels through a jaxpr: which positions meet, which are frozen, and why."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxprune.core import _checks
from jaxprune.jaxpr._control import open_jaxpr
from jaxprune.structured._even import Even, even_axes
from jaxprune.structured._labels import ONE, Labels, Value

RULES: dict[str, Callable[..., Any]] = {}
"""One rule a primitive, filled in by `_moves`, `_reshape`, `_meets` and others."""


class Body(NamedTuple):
    """A jaxpr that was walked, with what is known at every equation of this walk."""

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    const_values: tuple[Value, ...]
    inputs: tuple[Value, ...]
    steps: tuple["Step", ...]
    outputs: tuple[Value, ...]


class Step(NamedTuple):
    """One equation of a walked body, and the bodies that it runs."""

    eqn: JaxprEqn
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    bodies: tuple[Body, ...]


class Entered(NamedTuple):
    """What the rule of a primitive with jaxprs of its own returns."""

    outputs: Sequence[Value]
    bodies: tuple[Body, ...]


class Trace:
    """One analysis of one function.

    The labels 1 ... ``owned`` - 1 belong to the parameters, in leaf order, axis by
    axis; ``produced`` holds when each was first an output of a contraction.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], choices: dict[int, int] | None = None
    ) -> None:
        """Gives every position of every axis of the parameters its label.

        Where a reshape splits an axis whose parts could each be removed, ``choices``
        says which part is, by the number of the split; the outer one by default.
        """
        self.choices = choices or {}
        self.splits: list[tuple[np.ndarray, int]] = []  # Labels, and number of options.
        self.labels = Labels()
        self.axes = [
            [self.labels.fresh(size) if size != 1 else ONE for size in shape]
            for shape in shapes
        ]
        self.owned = 1 + sum(n for shape in shapes for n in shape if n != 1)
        self.produced = np.zeros(self.owned, np.int64)
        self.consumed = np.zeros(self.owned, bool)
        self.derives = True  # Not in a derivative rule: such rules are followed too.
        self.even: Even = {}  # Of the jaxpr that is being walked.
        self._time = 0

    def parameters(self) -> list[Value]:
        """The values of the parameters: zero wherever a removed position is."""
        return [Value(tuple(a), (True,) * len(a), weight=True) for a in self.axes]

    def frozen(self, shape: Sequence[int], reason: str) -> Value:
        """An array none of whose positions may be removed."""
        named = [
            self.labels.frozen(n, f"{reason}, axis {i}") for i, n in enumerate(shape)
        ]
        return Value(tuple(named), (False,) * len(named))

    def fresh(self, shape: Sequence[int], *, nil: bool = False) -> Value:
        """An array that comes from nowhere: it takes any size that is asked of it."""
        labels = tuple(self.labels.fresh(n) for n in shape)
        return Value(labels, (False,) * len(labels), weight=True, nil=nil)

    def produce(self, labels: np.ndarray) -> None:
        """Notes that parameters' labels are the output channels of a contraction."""
        if not self.derives:  # A derivative contracts the other way round.
            return
        self._time += 1
        mine = labels[(0 < labels) & (labels < self.owned)]
        self.produced[mine] = np.where(
            self.produced[mine] == 0, self._time, self.produced[mine]
        )

    def consume(self, labels: np.ndarray) -> None:
        """Notes that parameters' labels are summed over in a contraction."""
        if self.derives:
            self.consumed[labels[(0 < labels) & (labels < self.owned)]] = True

    def walk(self, closed: Any, inputs: Sequence[Value]) -> Body:
        """Follows labels through a jaxpr."""
        jaxpr, consts = open_jaxpr(closed)
        const_values = tuple(self._constant(c) for c in consts)
        known = dict(zip(jaxpr.constvars, const_values, strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        steps, even = [], {}
        for eqn in jaxpr.eqns:
            self.even = even
            values = [self._read(atom, known) for atom in eqn.invars]
            found = RULES.get(eqn.primitive.name, unknown)(self, eqn, values)
            outputs, bodies = found if isinstance(found, Entered) else (found, ())
            known.update(zip(eqn.outvars, outputs, strict=True))
            if eqn.outvars:  # A debug print has none.
                even[eqn.outvars[0]] = even_axes(eqn, values, even)
            steps.append(Step(eqn, tuple(values), tuple(outputs), bodies))
        outputs = tuple(self._read(atom, known) for atom in jaxpr.outvars)
        return Body(
            jaxpr, tuple(consts), const_values, tuple(inputs), tuple(steps), outputs
        )

    def _read(self, atom: Any, known: dict[Any, Value]) -> Value:
        return self._constant(atom.val) if isinstance(atom, Literal) else known[atom]

    def _constant(self, value: Any) -> Value:
        nil = np.ndim(value) == 0 and _checks.is_concrete(value) and _is_zero(value)
        return self.fresh(np.shape(value), nil=nil)


def unknown(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """The rule of whatever has no rule: it freezes all that it touches."""
    reason = f"the primitive {eqn.primitive.name} has no rule"
    for value in values:
        for labels in value.labels:
            trace.labels.freeze(labels, reason)
    return [
        trace.frozen(out.aval.shape, reason)  # pyright: ignore[reportAttributeAccessIssue]
        for out in eqn.outvars
    ]


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of a variable of a jaxpr."""
    return tuple(atom.aval.shape)


def _is_zero(value: Any) -> bool:
    kind = getattr(value, "dtype", None)
    if kind == jax.dtypes.float0:  # The tangent of an integer.
        return True
    if kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key):
        return False
    return bool(np.asarray(value) == 0)


def trace_function(
    fn: Callable[..., Any], params: Any, inputs: Sequence[Any]
) -> tuple[Trace, Body, Any]:
    """Traces ``fn(params, *inputs)`` and follows labels from parameters to outputs."""
    from jaxprune.structured import _control, _derivatives, _meets, _moves, _reshape

    del _control, _derivatives, _meets, _moves, _reshape  # They fill RULES.
    closed, out = jax.make_jaxpr(fn, return_shape=True)(params, *inputs)
    choices: dict[int, int] = {}
    trace, body = _follow(closed, out, params, inputs, choices)
    stuck = [n for n, split in enumerate(trace.splits) if _is_stuck(trace, split)]
    for tried in [stuck, *([n] for n in stuck)] if stuck else []:
        for pick in range(1, max(trace.splits[n][1] for n in tried)):
            picks = {n: min(pick, trace.splits[n][1] - 1) for n in tried}
            other, found = _follow(closed, out, params, inputs, {**choices, **picks})
            same = [n for _, n in other.splits] == [n for _, n in trace.splits]
            if same and _freedom(other) > _freedom(trace):
                trace, body, choices = other, found, {**choices, **picks}
    return trace, body, jax.tree.structure(out)


def _is_stuck(trace: Trace, split: tuple[np.ndarray, int]) -> bool:
    return bool(trace.labels.is_frozen(split[0]).all())


def _freedom(trace: Trace) -> int:
    """How many positions of parameters may be removed."""
    return int((~trace.labels.is_frozen(np.arange(1, trace.owned))).sum())


def _follow(
    closed: Any,
    out: Any,
    params: Any,
    inputs: Sequence[Any],
    choices: dict[int, int],
) -> tuple[Trace, Body]:
    """Follows labels from parameters to outputs, with splits decided."""
    paths, leaves = _checks.leaf_paths(params), jax.tree.leaves(params)
    trace = Trace([np.shape(leaf) for leaf in leaves], choices)
    names = _checks.leaf_paths(tuple(inputs))
    given = [
        trace.frozen(np.shape(leaf), f"meets input {name}")
        for name, leaf in zip(names, jax.tree.leaves(inputs), strict=True)
    ]
    body = trace.walk(closed, [*trace.parameters(), *given])
    for path, value in zip(_checks.leaf_paths(out), body.outputs, strict=True):
        if not _carries_parameter(trace, path, value, paths):
            for axis, labels in enumerate(value.labels):
                trace.labels.freeze(labels, f"reaches output {path}, axis {axis}")
    return trace, body


def _carries_parameter(trace: Trace, path: str, value: Value, paths: list[str]) -> bool:
    """Tells whether an output is a parameter's new value: its names and its labels.

    The paths' last two names must be alike, or the last where one has no more; numbers
    are places in sequences, not names, and a bare array has none.
    """
    theirs = _names(path)
    for name, axes in zip(paths, trace.axes, strict=True):
        ours = _names(name)
        last = min(len(ours), len(theirs), 2)
        named = last > 0 and ours[-last:] == theirs[-last:]
        if named and len(axes) == len(value.labels) and axes:
            same = [
                len(a) == len(b)
                and np.array_equal(trace.labels.find(a), trace.labels.find(b))
                for a, b in zip(axes, value.labels, strict=True)
            ]
            if all(same):
                return True
    return False


def _names(path: str) -> list[str]:
    return [p for p in path.split("/") if p != "(root)" and not p.isdigit()]
