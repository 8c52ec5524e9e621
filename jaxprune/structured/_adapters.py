"""How primitives run at narrowed sizes: one adapter a primitive that names a size.

Most primitives take any size and are bound as they are; the table `ADAPTED` holds those
whose parameters name a size, and those that run jaxprs of their own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxpr import read_custom_consts, read_scan, read_while
from jaxprune.structured._trace import Step

ADAPTED: dict[str, Callable[..., Any]] = {}
"""``adapter(replay, step, arguments) -> outputs``, by the primitive's name."""


def _adapts(*names: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        ADAPTED.update({name: function for name in names})
        return function

    return register


def take(array: Any, axis: int, positions: np.ndarray) -> Any:
    """Takes positions along an axis, in one slice where they are evenly spaced."""
    size = array.shape[axis]
    if np.array_equal(positions, np.arange(size)):
        return array
    sharding = jax.typeof(array).sharding
    if axis < len(sharding.spec) and sharding.spec[axis] is not None:  # Explicit.
        parts = list(sharding.spec)
        names, parts[axis] = parts[axis], None
        whole = jax.sharding.reshard(array, jax.P(*parts))
        parts[axis] = names if divides(len(positions), names, sharding.mesh) else None
        return jax.sharding.reshard(take(whole, axis, positions), jax.P(*parts))
    steps = np.unique(np.diff(positions))
    if len(positions) and len(steps) <= 1 and (steps > 0).all():
        stride = int(steps[0]) if len(steps) else 1
        start, stop = int(positions[0]), int(positions[-1]) + 1
        return jax.lax.slice_in_dim(array, start, stop, stride, axis)
    return jnp.take(array, positions, axis)


def divides(size: int, names: Any, mesh: Any) -> bool:
    """Tells whether a size can be sharded over axes of a mesh: one, several or None."""
    names = names if isinstance(names, tuple) else (names,) * (names is not None)
    return size % math.prod(mesh.shape[name] for name in names) == 0


def plain(replay: Any, step: Step, args: list[Any], **changed: Any) -> Sequence[Any]:
    """Binds the primitive as it is, or with some parameters changed."""
    del replay
    primitive = step.eqn.primitive
    params = primitive.get_bind_params({**step.eqn.params, **changed})
    found = primitive.bind(*args, **params)
    return found if primitive.multiple_results else [found]


@_adapts("reshape")
def _reshape(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    return plain(replay, step, args, new_sizes=replay.shape(step.outputs[0]))


@_adapts("broadcast_in_dim")
def _broadcast(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    return plain(replay, step, args, shape=replay.shape(step.outputs[0]))


@_adapts("slice")
def _slice(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    at, (array,), (value,) = step.eqn.params, args, step.inputs
    strides = at["strides"] or (1,) * array.ndim
    ranges = zip(at["start_indices"], at["limit_indices"], strides, strict=True)
    for axis, (row, limits) in enumerate(zip(value.labels, ranges, strict=True)):
        array = take(array, axis, _places(replay, row, np.arange(*limits)))
    return [array]


def _places(replay: Any, row: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where the chosen positions that stay lie in the narrowed axis."""
    kept = replay.kept(row)
    return (np.cumsum(kept) - 1)[chosen[kept[chosen]]]


@_adapts("split")
def _split(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    axis = step.eqn.params["axis"]
    sizes = tuple(replay.shape(value)[axis] for value in step.outputs)
    return plain(replay, step, args, sizes=sizes)


@_adapts("gather", "dynamic_slice")
def _lookup(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    old, new = step.inputs[0].labels, replay.shape(step.inputs[0])
    sizes = tuple(
        n if size == len(row) else size
        for size, row, n in zip(step.eqn.params["slice_sizes"], old, new, strict=True)
    )
    return plain(replay, step, args, slice_sizes=sizes)


@_adapts("conv_general_dilated")
def _convolution(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    left, right, _ = step.eqn.params["dimension_numbers"]
    groups = step.eqn.params["feature_group_count"]
    if groups > 1:
        groups = args[0].shape[left[1]] // args[1].shape[right[1]]
    return plain(replay, step, args, feature_group_count=groups)


@_adapts("custom_jvp_call")
def _custom_jvp(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    (body,), count = step.bodies, read_custom_consts(step.eqn)

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


@_adapts("custom_vjp_call")
def _custom_vjp(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    (body,), count = step.bodies, read_custom_consts(step.eqn)

    @jax.custom_vjp
    def function(*primals: Any) -> list[Any]:
        return replay.run(body, [*args[:count], *primals])

    def forward(*primals: Any) -> tuple[list[Any], list[Any]]:
        found = replay.run(replay.derivative(step).forward, primals)
        return found[: len(step.outputs)], found[len(step.outputs) :]

    def backward(residuals: list[Any], cotangents: list[Any]) -> tuple[Any, ...]:
        rule = replay.derivative(step)
        rates = zip(cotangents, rule.still, strict=True)
        moving = [rate for rate, stays in rates if not stays]
        found = iter(replay.run(rule.backward, [*residuals, *moving]))
        return tuple(None if stays else next(found) for stays in rule.fixed)

    function.defvjp(forward, backward)
    return function(*args[count:])


def _no_tangent(array: Any) -> Any:
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)


@_adapts("scan")
def _scan(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    scan = read_scan(step.eqn)
    consts, start, stacked = scan.split(args)

    def turn(carry: Any, xs: Any) -> tuple[list[Any], list[Any]]:
        found = replay.run(step.bodies[0], [*consts, *carry, *xs])
        return found[: scan.carry], found[scan.carry :]

    carry, stacked = jax.lax.scan(
        turn,
        start,
        stacked,
        length=scan.length,
        reverse=scan.reverse,
        unroll=scan.unroll,
    )
    return [*carry, *stacked]


@_adapts("while")
def _while(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    tests, consts, start = read_while(step.eqn).split(args)
    test, body = step.bodies
    return jax.lax.while_loop(
        lambda carry: replay.run(test, [*tests, *carry])[0],
        lambda carry: replay.run(body, [*consts, *carry]),
        start,
    )


@_adapts("cond")
def _cond(replay: Any, step: Step, args: list[Any]) -> Sequence[Any]:
    branches = [lambda *xs, b=body: replay.run(b, xs) for body in step.bodies]
    return jax.lax.switch(args[0], branches, *args[1:])
