"""Follows labels through a jaxpr: which positions are coupled or frozen, and why."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxprune.core import _checks
from jaxprune.jaxpr import open_jaxpr
from jaxprune.structured._labels import ONE, Fill, Labels, Value

Rule = Callable[["Trace", JaxprEqn, list[Value]], Any]
"""``rule(trace, eqn, values)`` returns what is known of the results, or `Entered`."""


class Body(NamedTuple):
    """A jaxpr that was walked, with everything known at each of its equations."""

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
    """The result of a rule that walked the jaxprs of its equation."""

    outputs: Sequence[Value]
    bodies: tuple[Body, ...]


class Trace:
    """One analysis of one function.

    The labels 1 ... ``owned`` - 1 belong to the parameters, in leaf order, axis by
    axis; ``produced`` holds when each was first an output of a contraction.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        rules: Mapping[str, Rule],
        choices: Mapping[int, int] | None = None,
    ) -> None:
        """Gives every position of every axis of the parameters its label.

        ``rules`` holds one rule per primitive; a primitive without one freezes what it
        touches. Where a reshape splits an axis into parts that could each be removed,
        ``choices`` says which part is, by the number of the split; by default the outer
        one.
        """
        self.rules = rules
        self.choices = choices or {}
        # By number: labels, and the number of options.
        self.splits: dict[int, tuple[np.ndarray, int]] = {}
        self.labels = Labels()
        self.axes = [
            [self.labels.fresh(size) if size != 1 else ONE for size in shape]
            for shape in shapes
        ]
        self.owned = 1 + sum(n for shape in shapes for n in shape if n != 1)
        self.produced = np.zeros(self.owned, np.int64)
        self.consumed = np.zeros(self.owned, bool)
        self.derives = True  # False inside a derivative rule.
        self.apart: list[tuple[np.ndarray, np.ndarray]] = []
        self._time = 0
        self._split = 0

    def parameters(self) -> list[Value]:
        """The values of the parameters: zero at removed positions."""
        return [Value(tuple(a), (0,) * len(a), weight=True) for a in self.axes]

    def frozen(self, shape: Sequence[int], reason: str) -> Value:
        """An array that cannot be narrowed."""
        named = [
            self.labels.frozen(n, f"{reason}, axis {i}") for i, n in enumerate(shape)
        ]
        return Value(tuple(named), (Fill.UNKNOWN,) * len(named))

    def fresh(self, shape: Sequence[int], number: Any = None) -> Value:
        """A constant: each of its axes takes the size of the axis that it meets."""
        labels = tuple(self.labels.fresh(n) for n in shape)
        return Value(labels, (Fill.KNOWN,) * len(labels), True, True, number)

    def count_split(self) -> int:
        """Returns the number of the next split of an axis by a reshape.

        All splits count, so a choice at one of them does not renumber the rest.
        """
        self._split += 1
        return self._split

    def produce(self, labels: np.ndarray) -> None:
        """Records that labels of parameters are output channels of a contraction."""
        if not self.derives:  # A derivative contracts the other way round.
            return
        self._time += 1
        mine = labels[(0 < labels) & (labels < self.owned)]
        self.produced[mine] = np.where(
            self.produced[mine] == 0, self._time, self.produced[mine]
        )

    def consume(self, labels: np.ndarray) -> None:
        """Records that labels of parameters are summed over in a contraction."""
        if self.derives:
            self.consumed[labels[(0 < labels) & (labels < self.owned)]] = True

    def join(self, left: Value, right: Value) -> None:
        """Joins the labels of two arrays of one shape."""
        for a, b in zip(left.labels, right.labels, strict=True):
            self.labels.join(a, b)

    def complete_sum(self, added: Sequence[tuple[np.ndarray, Fill]]) -> bool:
        """Freezes the axes of a sum to which removed positions add an unknown number.

        The replay adds the share of one axis; ``added`` holds labels and fill of each
        axis whose removed positions are not 0.

        Returns:
          Whether removed positions add nothing.
        """
        free = [pair for pair in added if not self.labels.is_frozen(pair[0]).all()]
        for labels, fill in free:
            if len(free) > 1 or fill is Fill.UNKNOWN:
                self.freeze_sum(labels)
        return not free

    def freeze_sum(self, labels: np.ndarray) -> None:
        """Freezes an axis that is summed over while its removed positions are not 0."""
        self.labels.freeze(
            labels, "it is summed over where a removed channel would not be 0"
        )

    def walk(self, closed: Any, inputs: Sequence[Value]) -> Body:
        """Follows labels through a jaxpr."""
        jaxpr, consts = open_jaxpr(closed)
        const_values = tuple(self._constant(c) for c in consts)
        read = dict(zip(jaxpr.constvars, const_values, strict=True))
        read.update(zip(jaxpr.invars, inputs, strict=True))

        steps = []
        for eqn in jaxpr.eqns:
            values = [self._read(atom, read) for atom in eqn.invars]
            if all(v.constant for v in values):
                outputs, bodies = self._constants(eqn, values), ()
            else:
                found = self._apply_rule(eqn, values)
                outputs, bodies = found if isinstance(found, Entered) else (found, ())
                outputs = [out._replace(constant=False) for out in outputs]
                self._keep_apart(outputs)
            read.update(zip(eqn.outvars, outputs, strict=True))
            steps.append(Step(eqn, tuple(values), tuple(outputs), bodies))
        outputs = tuple(self._read(atom, read) for atom in jaxpr.outvars)
        return Body(
            jaxpr, tuple(consts), const_values, tuple(inputs), tuple(steps), outputs
        )

    def _apply_rule(self, eqn: JaxprEqn, values: list[Value]) -> Any:
        return self.rules.get(eqn.primitive.name, unknown)(self, eqn, values)

    def _constants(self, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        """Constants computed from constants: made at full size, they couple nothing."""
        numbers: list[Any] = [None] * len(eqn.outvars)
        if values and all(v.number is not None for v in values):
            copies = [
                self.fresh(shape_of(a), v.number)
                for a, v in zip(eqn.invars, values, strict=True)
            ]
            found = self._apply_rule(eqn, copies)
            outputs = found.outputs if isinstance(found, Entered) else found
            numbers = [out.number for out in outputs]
        return [
            self.fresh(shape_of(out), number)
            for out, number in zip(eqn.outvars, numbers, strict=True)
        ]

    def _keep_apart(self, values: Sequence[Value]) -> None:
        """Records axes of one array that must not share labels.

        The replay computes removed positions of an axis with the rest of the array
        narrowed, so none of its other axes may be removed with it.
        """
        for value in values:
            for axis, fill in enumerate(value.fills):
                if not isinstance(fill, Fill) or fill is Fill.UNKNOWN:
                    continue
                rows = [row for i, row in enumerate(value.labels) if i != axis]
                for row in rows:
                    if len(row) > 1 < len(value.labels[axis]):
                        self.apart.append((value.labels[axis], row))

    def separate(self) -> None:
        """Freezes the labels that two axes share although they must be apart."""
        for left, right in self.apart:
            a, b = self.labels.find(left), self.labels.find(right)
            shared = np.intersect1d(a, b)
            if len(shared):
                self.labels.freeze(shared, "two axes of an array share its channels")

    def _read(self, atom: Any, read: dict[Any, Value]) -> Value:
        if isinstance(atom, Literal):
            return self._constant(atom.val)
        return read[atom]

    def _constant(self, value: Any) -> Value:
        return self.fresh(np.shape(value), _number(value))


def unknown(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """The rule of every other primitive: it freezes whatever it touches."""
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
    return tuple(getattr(atom.aval, "shape", ()))  # A token has none.


def _number(value: Any) -> Any:
    """The number that a constant holds everywhere; None if there is none."""
    kind = getattr(value, "dtype", None)
    if kind == jax.dtypes.float0:  # The tangent of an integer.
        return 0
    if isinstance(value, bool | int | float | complex):  # As jax types literals.
        return value if value == value else None
    if kind is None or jnp.issubdtype(kind, jax.dtypes.prng_key):
        return None
    if not (_checks.on_host(value) or (_checks.is_concrete(value) and not value.shape)):
        return None  # Large arrays are not fetched from a device.
    entries = np.asarray(value).reshape(-1)
    return entries[0] if entries.size and np.all(entries == entries[0]) else None
