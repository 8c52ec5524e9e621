"""Computes what arrays hold at removed positions, where that is known and not 0.

In the two-pass variance, ``mean((x - mean(x))**2)``, a removed channel adds
``mean(x)**2`` to the sum; if fixed positions are added to ``x``, their removed entries
take part in both means. The replay adds this share to the sum over the channels that
stay. It is computed by the equations that lead to the sum, run for the removed channels
in place of the kept ones.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxprune.jaxpr import CALLS
from jaxprune.structured._adapters import ADAPTED, plain, take
from jaxprune.structured._labels import Fill, Value
from jaxprune.structured._trace import Body, Step


class Frame:
    """One run of a body: its narrowed arrays, and the step of a frame that runs it.

    ``views`` and ``full`` are shared by the frames of one function that JAX traces, as
    the arrays that they hold are valid in that function only.
    """

    def __init__(self, body: Body, caller: "tuple[Frame, Step] | None" = None) -> None:
        """Starts without arrays."""
        self.body, self.caller = body, caller
        self.known: dict[Any, Any] = {}
        self.inner: dict[int, Frame] = {}  # By the ids of the steps that are calls.
        self.views: dict[bytes, Removed] = {}
        self.full: dict[Any, Any] = {}  # Constants, by frame and variable.
        self.made = {out: step for step in body.steps for out in step.eqn.outvars}


class Removed:
    """A view of a replay that keeps the removed positions of one axis.

    It is what adapters see in place of the replay.
    """

    def __init__(self, replay: Any, chosen: np.ndarray) -> None:
        """Keeps the positions with ``chosen`` labels along the axes that have any."""
        self._replay, self._chosen = replay, chosen
        self._cache: dict[tuple[int, Any], Any] = {}
        self._full: dict[Any, Any] = {}
        self._entered: dict[tuple[int, int], Frame] = {}

    def kept(self, labels: np.ndarray) -> np.ndarray:
        """Tells for each position along an axis whether this view keeps it."""
        chosen = self._chosen[labels]
        return chosen if chosen.any() else self._replay.kept(labels)

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of an array in this view."""
        return tuple(int(self.kept(row).sum()) for row in value.labels)

    def _taken(self, array: Any, value: Value) -> Any:
        for axis, row in enumerate(value.labels):
            array = take(array, axis, np.flatnonzero(self.kept(row)))
        return array

    def array(self, frame: Frame, atom: Any, value: Value) -> Any:
        """What a variable of a frame holds in this view."""
        if isinstance(atom, Literal):
            return self._taken(atom.val, value)
        chosen = [i for i, row in enumerate(value.labels) if self._chosen[row].any()]
        if not chosen:
            return self._replay.evaluated(frame, atom)
        if (id(frame), atom) not in self._cache:
            fill = value.fill(chosen[0])
            if not isinstance(fill, Fill):
                found = jnp.full(self.shape(value), fill, atom.aval.dtype)
            elif value.constant:
                found = self._taken(full(frame, atom, self._full), value)
            else:
                found = self._computed(frame, atom, value)
            self._cache[id(frame), atom] = found
        return self._cache[id(frame), atom]

    def _computed(self, frame: Frame, atom: Any, value: Value) -> Any:
        if atom not in frame.made:
            assert frame.caller is not None  # Parameters hold 0, inputs are frozen.
            frame, step = frame.caller
            index = step.bodies[0].jaxpr.invars.index(atom)
            return self.array(frame, step.eqn.invars[index], step.inputs[index])
        step = frame.made[atom]
        index = step.eqn.outvars.index(atom)
        if not any(map(self._replay.is_narrowed, step.inputs)):  # At full size.
            args = [self._replay.evaluated(frame, a) for a in step.eqn.invars]
            return self._taken(plain(self, step, args)[index], value)
        if step.eqn.primitive.name in CALLS:
            inner = self._inner(frame, step)
            out = inner.body.jaxpr.outvars[index]
            return self.array(inner, out, inner.body.outputs[index])
        return self.run(frame, step)[index]

    def _inner(self, frame: Frame, step: Step) -> Frame:
        """The frame of a call; one whose arrays may not be used here starts anew."""
        if id(step) in frame.inner:
            return frame.inner[id(step)]
        key = id(frame), id(step)
        if key not in self._entered:
            self._entered[key] = Frame(step.bodies[0], (frame, step))
        return self._entered[key]

    def run(self, frame: Frame, step: Step) -> Sequence[Any]:
        """Runs a step of a frame in this view."""
        pairs = zip(step.eqn.invars, step.inputs, strict=True)
        args = [self.array(frame, atom, value) for atom, value in pairs]
        with step.eqn.ctx.manager:
            return ADAPTED.get(step.eqn.primitive.name, plain)(self, step, args)


def full(frame: Frame, atom: Any, cache: dict[Any, Any]) -> Any:
    """Computes a variable that depends on constants only, at its full size."""
    if isinstance(atom, Literal):
        return atom.val
    jaxpr = frame.body.jaxpr
    if atom in frame.made and (id(frame), atom) not in cache:
        step = frame.made[atom]
        args = [full(frame, a, cache) for a in step.eqn.invars]
        with step.eqn.ctx.manager:
            found = plain(None, step, args)
        for out, array in zip(step.eqn.outvars, found, strict=True):
            cache[id(frame), out] = array
    if atom in frame.made:
        return cache[id(frame), atom]
    if atom in jaxpr.constvars:
        return frame.body.consts[jaxpr.constvars.index(atom)]
    assert frame.caller is not None  # Parameters and inputs are no constants.
    caller, step = frame.caller
    return full(caller, step.eqn.invars[jaxpr.invars.index(atom)], cache)
