"""Runs a traced function again without the positions that are removed.

Most primitives take any size and are bound as they are; the table `_ADAPTED` holds
those whose parameters name a size, and those that run jaxprs of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxprune.structured._control import derivative
from jaxprune.structured._labels import Value
from jaxprune.structured._trace import Body, Step, Trace

_ADAPTED: dict[str, Callable[..., Any]] = {}


def _adapts(*names: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        _ADAPTED.update({name: function for name in names})
        return function

    return register


class Replay:
    """Evaluates the bodies of one trace at narrowed sizes."""

    def __init__(self, trace: Trace, removed: np.ndarray) -> None:
        """Removes the classes of the given labels, which are those of parameters."""
        self._trace, self._removed = trace, removed
        self._gone = self._find_gone()

    def _find_gone(self) -> np.ndarray:
        roots = self._trace.labels.roots()
        gone = np.zeros(len(roots), bool)
        gone[roots[self._removed]] = True
        return gone[roots]

    @property
    def gone(self) -> np.ndarray:
        """Tells for every label whether it is removed."""
        return self._gone

    def derivative(self, step: Step) -> tuple[Body, list[bool], list[bool]]:
        """Walks the derivative rule of a `custom_jvp`, as late as it is asked for."""
        before = self._gone
        found = derivative(self._trace, step.eqn, step.inputs, step.bodies[0].outputs)
        self._gone = self._find_gone()
        if not np.array_equal(self._gone[: len(before)], before):
            raise ValueError(
                "The derivative of a custom_jvp function of fn couples other channels "
                "than its value. Leave the groups that reach it out of the mask."
            )
        return found

    def kept(self, labels: np.ndarray) -> np.ndarray:
        """Tells for each position along an axis whether it stays."""
        return ~self._gone[labels]

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape that an array has now."""
        return tuple(int(self.kept(row).sum()) for row in value.labels)

    def is_narrowed(self, value: Value) -> bool:
        """Tells whether an array loses positions."""
        return any(self._gone[row].any() for row in value.labels)

    def narrowed(self, array: Any, value: Value) -> Any:
        """Takes the positions that stay from an array at its old size."""
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
        for step in body.steps:
            inputs = self._read(step.eqn.invars, step.inputs, known)
            with step.eqn.ctx.manager:
                outputs = self._step(step, inputs)
                if step.eqn.primitive.name == "reduce_sum":
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
        """Adds to a sum what the removed positions of an even axis add to it."""
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
        """What an array holds at removed positions of an even axis, as size one."""
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
            return _plain(self, step, inputs, shape=tuple(shape))[0]
        pairs = zip(step.eqn.invars, step.inputs, strict=True)
        parts = [self._fill(a, v, axis, known, made) for a, v in pairs]
        return _plain(self, step, parts)[0]

    def _step(self, step: Step, args: list[Any]) -> Sequence[Any]:
        if any(map(self.is_narrowed, step.inputs)):
            return _ADAPTED.get(step.eqn.primitive.name, _plain)(self, step, args)
        outputs = _plain(self, step, args)  # Made at full size, whatever it runs.
        return [
            self.narrowed(out, value)
            for out, value in zip(outputs, step.outputs, strict=True)
        ]


def take(array: Any, axis: int, positions: np.ndarray) -> Any:
    """Takes positions along an axis, in one slice where they are evenly spaced."""
    size = array.shape[axis]
    if np.array_equal(positions, np.arange(size)):
        return array
    steps = np.unique(np.diff(positions))
    if len(positions) and len(steps) <= 1 and (steps > 0).all():
        stride = int(steps[0]) if len(steps) else 1
        start, stop = int(positions[0]), int(positions[-1]) + 1
        return jax.lax.slice_in_dim(array, start, stop, stride, axis)
    return jnp.take(array, positions, axis)


def _plain(
    replay: Replay, step: Step, args: list[Any], **changed: Any
) -> Sequence[Any]:
    """Binds the primitive as it is, or with some parameters changed."""
    del replay
    primitive = step.eqn.primitive
    params = primitive.get_bind_params({**step.eqn.params, **changed})
    found = primitive.bind(*args, **params)
    return found if primitive.multiple_results else [found]


@_adapts("reshape")
def _reshape(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    return _plain(replay, step, args, new_sizes=replay.shape(step.outputs[0]))


@_adapts("broadcast_in_dim")
def _broadcast(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    return _plain(replay, step, args, shape=replay.shape(step.outputs[0]))


@_adapts("slice")
def _slice(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    at, (array,), (value,) = step.eqn.params, args, step.inputs
    strides = at["strides"] or (1,) * array.ndim
    ranges = zip(at["start_indices"], at["limit_indices"], strides, strict=True)
    for axis, (row, limits) in enumerate(zip(value.labels, ranges, strict=True)):
        array = take(array, axis, _places(replay, row, np.arange(*limits)))
    return [array]


def _places(replay: Replay, row: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where the chosen positions that stay lie in the narrowed axis."""
    kept = replay.kept(row)
    return (np.cumsum(kept) - 1)[chosen[kept[chosen]]]


@_adapts("split")
def _split(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    axis = step.eqn.params["axis"]
    sizes = tuple(replay.shape(value)[axis] for value in step.outputs)
    return _plain(replay, step, args, sizes=sizes)


@_adapts("gather", "dynamic_slice")
def _lookup(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    old, new = step.inputs[0].labels, replay.shape(step.inputs[0])
    sizes = tuple(
        n if size == len(row) else size
        for size, row, n in zip(step.eqn.params["slice_sizes"], old, new, strict=True)
    )
    return _plain(replay, step, args, slice_sizes=sizes)


@_adapts("conv_general_dilated")
def _convolution(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    left, right, _ = step.eqn.params["dimension_numbers"]
    groups = step.eqn.params["feature_group_count"]
    if groups > 1:
        groups = args[0].shape[left[1]] // args[1].shape[right[1]]
    return _plain(replay, step, args, feature_group_count=groups)


@_adapts("jit", "pjit", "closed_call", "core_call")
def _call(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    return replay.run(step.bodies[0], args)


@_adapts("remat2", "checkpoint")
def _checkpoint(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    at = step.eqn.params
    run = jax.checkpoint(
        lambda *xs: replay.run(step.bodies[0], xs),
        prevent_cse=at["prevent_cse"],
        policy=at["policy"],
    )
    return run(*args)


@_adapts("custom_jvp_call")
def _custom_jvp(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    (body,), count = step.bodies, step.eqn.params["num_consts"]

    @jax.custom_jvp
    def function(*primals: Any) -> list[Any]:
        return replay.run(body, [*args[:count], *primals])

    def jvp(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        rule, fixed, still = replay.derivative(step)
        moving = [t for t, stays in zip(tangents, fixed, strict=True) if not stays]
        found = replay.run(rule, [*primals, *moving])
        outputs, rates = found[: len(still)], iter(found[len(still) :])
        return outputs, [
            _no_tangent(out) if stays else next(rates)
            for out, stays in zip(outputs, still, strict=True)
        ]

    function.defjvp(jvp)
    return function(*args[count:])


def _no_tangent(array: Any) -> Any:
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)


@_adapts("scan")
def _scan(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    at = step.eqn.params
    first, count = at["num_consts"], at["num_carry"]
    last = first + count

    def turn(carry: Any, xs: Any) -> tuple[list[Any], list[Any]]:
        found = replay.run(step.bodies[0], [*args[:first], *carry, *xs])
        return found[:count], found[count:]

    carry, stacked = jax.lax.scan(
        turn,
        args[first:last],
        args[last:],
        length=at["length"],
        reverse=at["reverse"],
        unroll=at["unroll"],
    )
    return [*carry, *stacked]


@_adapts("while")
def _while(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    first = step.eqn.params["cond_nconsts"]
    last = first + step.eqn.params["body_nconsts"]
    test, body = step.bodies
    return jax.lax.while_loop(
        lambda carry: replay.run(test, [*args[:first], *carry])[0],
        lambda carry: replay.run(body, [*args[first:last], *carry]),
        args[last:],
    )


@_adapts("cond")
def _cond(replay: Replay, step: Step, args: list[Any]) -> Sequence[Any]:
    branches = [lambda *xs, b=body: replay.run(b, xs) for body in step.bodies]
    return jax.lax.switch(args[0], branches, *args[1:])
