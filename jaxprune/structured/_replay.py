"""Runs a traced function again without the positions that are removed.

The labels of the trace tell which positions every array keeps, and the adapters how a
primitive runs at its new size.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from jaxprune.jaxpr import CALLS, CHECKPOINTS
from jaxprune.structured._adapters import ADAPTED, plain, take
from jaxprune.structured._labels import Fill, Value, known
from jaxprune.structured._mean_width import find_means
from jaxprune.structured._removed import Frame, Removed, full
from jaxprune.structured._trace import Body, Step, Trace
from jaxprune.structured.rules._derivatives import derivative


class Replay:
    """Evaluates the bodies of one trace at narrowed sizes."""

    def __init__(self, trace: Trace, removed: np.ndarray, mean_width: str) -> None:
        """Removes the classes of the given labels, which are those of parameters."""
        self._trace, self._removed = trace, removed
        self._mean_width = mean_width
        self._means: dict[
            int, float
        ] = {}  # The divisors that `find_means` found in each body.
        self._gone = self._find_gone()
        self._rules: dict[int, Any] = {}  # By the ids of steps.

    def _find_gone(self) -> np.ndarray:
        self._roots = self._trace.labels.roots()
        return self._classes(self._roots[self._removed])

    def _classes(self, roots: np.ndarray) -> np.ndarray:
        """Tells for every label whether its class has one of these roots."""
        chosen = np.zeros(len(self._roots), bool)
        chosen[roots] = True
        return chosen[self._roots]

    @property
    def gone(self) -> np.ndarray:
        """Tells for every label whether it is removed."""
        return self._gone

    def derivative(self, step: Step) -> Any:
        """Walks the derivative rule of a step, when it is first needed."""
        if id(step) in self._rules:
            return self._rules[id(step)]
        before = self._gone
        found = derivative(self._trace, step.eqn, step.inputs, step.bodies[0].outputs)
        self._gone = self._find_gone()
        if not np.array_equal(self._gone[: len(before)], before):
            raise ValueError(
                "The derivative rule of a function inside fn couples channels that "
                "its value does not. Leave the groups that reach it out of the mask."
            )
        self._rules[id(step)] = found
        return found

    def kept(self, labels: np.ndarray) -> np.ndarray:
        """Tells for each position along an axis whether it stays."""
        return ~self._gone[labels]

    def shape(self, value: Value) -> tuple[int, ...]:
        """The narrowed shape of an array."""
        return tuple(int(self.kept(row).sum()) for row in value.labels)

    def is_narrowed(self, value: Value) -> bool:
        """Tells whether an array loses positions."""
        return any(self._gone[row].any() for row in value.labels)

    def narrowed(self, array: Any, value: Value) -> Any:
        """Takes the kept positions from an array at its old size."""
        for axis, row in enumerate(value.labels):
            array = take(array, axis, np.flatnonzero(self.kept(row)))
        return array

    def run(self, body: Body, args: Sequence[Any]) -> list[Any]:
        """Evaluates a body on narrowed arguments."""
        return self._run(Frame(body), args)

    def _run(self, frame: Frame, args: Sequence[Any]) -> list[Any]:
        body = frame.body
        frame.known.update(zip(body.jaxpr.invars, args, strict=True))
        if self._mean_width == "new":
            self._means.update(find_means(body, args, self.kept))
        for step in body.steps:
            self._evaluate(frame, step)
        return self._read(frame, body.jaxpr.outvars, body.outputs)

    def _read(
        self, frame: Frame, atoms: Sequence[Any], values: Sequence[Value]
    ) -> list[Any]:
        return [
            self.narrowed(atom.val, value)
            if isinstance(atom, Literal)
            else self.evaluated(frame, atom)
            for atom, value in zip(atoms, values, strict=True)
        ]

    def evaluated(self, frame: Frame, atom: Any) -> Any:
        """What a variable of a frame holds, which is computed if it was not yet."""
        if isinstance(atom, Literal):
            return atom.val
        jaxpr = frame.body.jaxpr
        if atom not in frame.known and atom in frame.made:
            self._evaluate(frame, frame.made[atom])
        elif atom not in frame.known and atom in jaxpr.constvars:
            index = jaxpr.constvars.index(atom)
            const, value = frame.body.consts[index], frame.body.const_values[index]
            frame.known[atom] = self.narrowed(const, value)
        elif atom not in frame.known:
            assert frame.caller is not None  # Only a called frame lacks arguments.
            caller, step = frame.caller
            index = jaxpr.invars.index(atom)
            (frame.known[atom],) = self._read(
                caller, [step.eqn.invars[index]], [step.inputs[index]]
            )
        return frame.known[atom]

    def _evaluate(self, frame: Frame, step: Step) -> None:
        atoms, values = step.eqn.outvars, step.outputs
        if values and all(value.constant for value in values):
            outputs = [full(frame, atom, frame.full) for atom in atoms]
            outputs = map(self.narrowed, outputs, values)
            frame.known.update(zip(atoms, outputs, strict=True))
            return
        inputs = self._read(frame, step.eqn.invars, step.inputs)
        with step.eqn.ctx.manager:
            outputs = self._step(frame, step, self._operands(step, inputs))
        frame.known.update(zip(atoms, outputs, strict=True))

    def _operands(self, step: Step, args: list[Any]) -> list[Any]:
        """The arguments of a step; a mean over what stays has its new divisor."""
        if step.eqn.primitive.name != "div" or id(step) not in self._means:
            return args
        return [args[0], np.asarray(self._means[id(step)], args[0].dtype)]

    def _step(self, frame: Frame, step: Step, args: list[Any]) -> Sequence[Any]:
        name = step.eqn.primitive.name
        if not any(map(self.is_narrowed, step.inputs)):
            outputs = plain(self, step, args)  # At full size.
            return [
                self.narrowed(out, value)
                for out, value in zip(outputs, step.outputs, strict=True)
            ]
        if name in CALLS:
            return self._call(frame, step, args)
        outputs = ADAPTED.get(name, plain)(self, step, args)
        summed = SUMMED.get(name)
        if summed and id(step) not in self._means:
            for row, fill in summed(step):
                outputs = [self._completed(frame, step, outputs[0], row, fill)]
        return outputs

    def _call(self, frame: Frame, step: Step, args: list[Any]) -> Sequence[Any]:
        at = step.eqn.params
        if step.eqn.primitive.name not in CHECKPOINTS:
            inner = Frame(step.bodies[0], (frame, step))
            inner.views, inner.full = frame.views, frame.full
            frame.inner[id(step)] = inner
            return self._run(inner, args)
        run = jax.checkpoint(
            lambda *xs: self._run(Frame(step.bodies[0], (frame, step)), xs),
            prevent_cse=at["prevent_cse"],
            policy=at["policy"],
        )
        return run(*args)

    def _completed(
        self, frame: Frame, step: Step, total: Any, row: np.ndarray, fill: Any
    ) -> Any:
        """Adds to a sum over an axis what its removed positions add to it."""
        gone = self._gone[row]
        if not gone.any():
            return total
        roots = np.unique(self._roots[row[gone]])
        roots = roots if fill is Fill.KNOWN else roots[:1]
        key = roots.tobytes()
        if key not in frame.views:
            frame.views[key] = Removed(self, self._classes(roots))
        view = frame.views[key]
        (share,) = view.run(frame, step)
        times = gone.sum() / view.kept(row).sum()
        return total + (share * np.asarray(times, share.dtype) if times > 1 else share)


def _summed_axes(step: Step) -> list[tuple[np.ndarray, Any]]:
    """The axes of a sum whose removed positions are not 0: labels and fill."""
    (x,) = step.inputs
    axes = step.eqn.params["axes"]
    return [(x.labels[i], x.fill(i)) for i in axes if not x.zero(i)]


def _contracted_axes(step: Step) -> list[tuple[np.ndarray, Any]]:
    """The axes of a matrix product whose removed positions add to it."""
    (left, right), _ = step.eqn.params["dimension_numbers"]
    one, other = step.inputs
    return [
        (one.labels[i], min(known(one.fill(i)), known(other.fill(j))))
        for i, j in zip(left, right, strict=True)
        if not (one.zero(i) or other.zero(j))
    ]


SUMMED = {"dot_general": _contracted_axes, "reduce_sum": _summed_axes}
"""The sums that are completed."""
