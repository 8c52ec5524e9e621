"""Runs a traced function again without the positions that are removed.

The labels of the trace tell which positions every array keeps, and the adapters how a
primitive runs at its new size.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxprune.structured._adapters import ADAPTED, plain, take
from jaxprune.structured._labels import Value
from jaxprune.structured._mean_width import find_means
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
        roots = self._trace.labels.roots()
        gone = np.zeros(len(roots), bool)
        gone[roots[self._removed]] = True
        return gone[roots]

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
        known: dict[Any, Any] = dict(zip(body.jaxpr.invars, args, strict=True))
        constants = zip(body.consts, body.const_values, strict=True)
        consts = [self.narrowed(c, value) for c, value in constants]
        known.update(zip(body.jaxpr.constvars, consts, strict=True))

        made = {out: step for step in body.steps for out in step.eqn.outvars}
        if self._mean_width == "new":
            self._means.update(find_means(body, args, self.kept))
        for step in body.steps:
            inputs = self._read(step.eqn.invars, step.inputs, known)
            with step.eqn.ctx.manager:
                outputs = self._step(step, self._operands(step, inputs))
                summed = step.eqn.primitive.name == "reduce_sum"
                if summed and id(step) not in self._means:
                    outputs = [self._completed(step, outputs[0], known, made)]
            known.update(zip(step.eqn.outvars, outputs, strict=True))
        return self._read(body.jaxpr.outvars, body.outputs, known)

    def _read(
        self, atoms: Sequence[Any], values: Sequence[Value], known: dict[Any, Any]
    ) -> list[Any]:
        return [
            self.narrowed(atom.val, value) if isinstance(atom, Literal) else known[atom]
            for atom, value in zip(atoms, values, strict=True)
        ]

    def _completed(self, step: Step, total: Any, known: Any, made: Any) -> Any:
        """Adds to a sum what the removed positions of a filled axis add to it."""
        (atom,), (value,) = step.eqn.invars, step.inputs
        for axis in map(int, step.eqn.params["axes"]):
            gone = int(self._gone[value.labels[axis]].sum())
            if gone and not value.zero(axis):
                one = self._fill(atom, value, axis, known, made)
                one = jnp.sum(one, step.eqn.params["axes"], dtype=total.dtype)
                total = total + one * np.asarray(gone, total.dtype)
        return total

    def _fill(
        self, atom: Any, value: Value, axis: int, known: Any, made: dict[Any, Step]
    ) -> Any:
        """The number at the removed positions of a filled axis, with size 1."""
        (array,) = self._read([atom], [value], known)
        if axis >= len(value.labels) or len(value.labels[axis]) == 1:
            return array
        if value.zero(axis):
            return jnp.zeros_like(jax.lax.slice_in_dim(array, 0, 1, axis=axis))
        step = made[atom]
        if step.eqn.primitive.name == "broadcast_in_dim":
            shape = list(self.shape(value))
            shape[axis] = 1
            inputs = self._read(step.eqn.invars, step.inputs, known)
            return plain(self, step, inputs, shape=tuple(shape))[0]
        pairs = zip(step.eqn.invars, step.inputs, strict=True)
        parts = [self._fill(a, v, axis, known, made) for a, v in pairs]
        return plain(self, step, self._operands(step, parts))[0]

    def _operands(self, step: Step, args: list[Any]) -> list[Any]:
        """The arguments of a step; a mean over what stays has its new divisor."""
        if step.eqn.primitive.name != "div" or id(step) not in self._means:
            return args
        return [args[0], np.asarray(self._means[id(step)], args[0].dtype)]

    def _step(self, step: Step, args: list[Any]) -> Sequence[Any]:
        if any(map(self.is_narrowed, step.inputs)):
            return ADAPTED.get(step.eqn.primitive.name, plain)(self, step, args)
        outputs = plain(self, step, args)  # At full size.
        return [
            self.narrowed(out, value)
            for out, value in zip(outputs, step.outputs, strict=True)
        ]
