"""The gradient flow of a loss: θ, g and Hg, from which all measures are computed."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._types import AxisName, LossFn, Params
from jaxprune.core import _checks
from jaxprune.core._dtypes import upcast_half


class Flow(NamedTuple):
    r"""The weights, gradient and Hessian-gradient product of a loss, float32 or wider.

    Attributes:
      params: the weights :math:`\theta`.
      gradient: :math:`g = \nabla L(\theta)`.
      hessian_gradient: :math:`H g` with :math:`H = \nabla^2 L(\theta)`, or None at
        order 1.
      squared_gradient: :math:`g^2` for one batch; over many, the mean of the squared
        minibatch gradients.
    """

    params: Any
    gradient: Any
    hessian_gradient: Any
    squared_gradient: Any


def gradient_flow(
    loss_fn: LossFn, *, order: int = 2, axis_name: AxisName | None = None
) -> Callable[..., Flow]:
    r"""Builds the function that evaluates a loss's gradient flow on one batch.

    :math:`Hg` is the derivative of the gradient along the gradient of the same batch,
    computed forward over reverse (``jax.linearize`` of ``jax.grad``). All measures in
    `jaxprune.measures` are functions of the result, so they share one pass.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a scalar, the mean over the batch.
      order: 1 for the gradient alone; 2 to add :math:`Hg`, at two to three times the
        cost.
      axis_name: inside ``pmap`` or ``shard_map``, the axis (or axes) to average over:
        :math:`g` before it is squared or used as the tangent, and :math:`Hg`.

    Returns:
      A pure, jittable ``flow_fn(params, *batch) -> Flow``. Its trees have the
      structure, shapes and shardings of ``params``, in float32 or wider.

    Raises:
      ValueError: if ``order`` is not 1 or 2; when called, if ``params`` has no leaves.
      TypeError: when called, if the loss is not a scalar, or a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(2.0))
      >>> float(flow.gradient), float(flow.hessian_gradient)  # 3 p², 6 p · 3 p²
      (12.0, 144.0)

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021.
    """
    _check_order(order)
    _check_loss(loss_fn)

    def flow_fn(params: Params, *batch: Any) -> Flow:
        grad = gradient_fn(loss_fn, batch, axis_name)
        _checks.check_floating(params, "params")
        if order == 1:
            gradient, hessian_gradient = grad(params), None
        else:
            gradient, hessian_vector = jax.linearize(grad, params)
            hessian_gradient = hessian_vector(gradient)
        gradient = upcast_half(gradient)
        squared = jax.tree.map(jnp.square, gradient)
        return Flow(
            upcast_half(params), gradient, upcast_half(hessian_gradient), squared
        )

    return flow_fn


def mean_flow(
    loss_fn: LossFn, params: Params, batches: Iterable[Any], *, order: int = 2
) -> Flow:
    r"""Evaluates the gradient flow of the mean loss over many batches.

    .. math:: g = \sum_b w_b g_b, \quad Hg = \sum_b w_b H_b g, \quad
              \text{squared} = \sum_b w_b g_b^2,

    where :math:`w_b` is the share of batch b in all examples. :math:`Hg` is taken along
    the mean gradient, so order 2 reads the batches twice. The gradients that are
    squared are those of minibatches, not of single examples. Memory does not depend on
    the number of batches, and each batch shape is compiled once.

    Args:
      loss_fn: ``loss_fn(params, batch) -> loss``, a scalar, the mean over the batch.
        The compiled step is cached for as long as this function object lives.
      params: the weights.
      batches: an iterable of batches, each a pytree that is passed whole to
        ``loss_fn``. A batch's weight is the length of the leading axis of its first
        leaf (1 for a scalar). Order 2 iterates twice, so both iterations must yield the
        same batches.
      order: 1 for the gradients alone; 2 to add :math:`Hg`.

    Returns:
      A `Flow` like that of `gradient_flow`.

    Raises:
      ValueError: if there are no batches, ``order`` is not 1 or 2, ``batches`` is an
        iterator at order 2, or the second iteration yields another number of batches or
        examples.
      TypeError: if the loss is not a scalar, or a leaf of ``params`` is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> batches = [jnp.array([1.0, 3.0]), jnp.array([5.0])]
      >>> flow = jp.mean_flow(lambda p, x: jnp.mean(p * x), jnp.array(1.0), batches)
      >>> float(flow.gradient), float(flow.squared_gradient)  # 9 / 3, (2·2² + 5²) / 3
      (3.0, 11.0)

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021, and the authors' code for the
      sums over minibatches.
    """
    _check_order(order)
    _check_loss(loss_fn)
    _checks.check_floating(params, "params")
    _checks.check_batches(batches)
    if order == 2 and isinstance(batches, Iterator):
        raise ValueError(
            "mean_flow reads the batches twice at order 2, but was given an iterator "
            "that can be read only once. Pass a list, a loader, or any object whose "
            "__iter__ starts again; or order=1."
        )
    first, second = _steps(loss_fn)
    zeros = (_zeros_like(params), _zeros_like(params))  # Apart, as both are donated.
    (gradient, squared), seen = _accumulated(first, zeros, (params,), batches)
    hessian_gradient = None
    if order == 2:
        hessian_gradient, seen_again = _accumulated(
            second, _zeros_like(params), (params, gradient), batches
        )
        if seen != seen_again:
            raise ValueError(
                f"mean_flow read {seen[0]} batches with {seen[1]} examples, and the "
                f"second time {seen_again[0]} with {seen_again[1]}. Both iterations "
                "over batches must yield the same."
            )
    return Flow(upcast_half(params), gradient, hessian_gradient, squared)


def check_flow(flow: Any) -> Flow:
    """Returns the flow; raises if it is not a `Flow`."""
    if not isinstance(flow, Flow):
        raise TypeError(
            "flow must be a jp.Flow, as jp.gradient_flow(loss_fn)(params, *batch) or "
            f"jp.mean_flow(...) returns; got {_checks.described(flow)}."
        )
    return flow


def _check_loss(loss_fn: Any) -> None:
    _checks.check_callable(loss_fn, "loss_fn", "loss_fn(params, *batch) -> loss")


def _check_order(order: int) -> None:
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (g) or 2 (g and Hg); got {order!r}.")


def gradient_fn(
    loss_fn: LossFn, batch: tuple[Any, ...], axis_name: AxisName | None
) -> Callable[[Params], Params]:
    """Builds the gradient function, averaged over ``axis_name`` if there is one."""

    def scalar_loss(params: Params) -> jax.Array:
        loss = loss_fn(params, *batch)
        if jax.tree.structure(loss) != jax.tree.structure(0.0):
            raise TypeError(
                f"loss_fn must return one scalar; it returned "
                f"{_checks.described(loss)}. Drop an auxiliary output with "
                "lambda params, *batch: loss_fn(params, *batch)[0]."
            )
        floating = jnp.issubdtype(jnp.result_type(loss), jnp.floating)
        if jnp.shape(loss) != () or not floating:
            raise TypeError(
                "loss_fn must return one floating-point scalar, the mean over the "
                f"batch; it returned {_checks.described(loss)}. Take jnp.mean of it."
            )
        return loss

    def gradient(params: Params) -> Params:
        if axis_name is None:
            return jax.grad(scalar_loss)(params)
        params = jax.tree.map(lambda p: _varying(p, axis_name), params)
        return jax.lax.pmean(jax.grad(scalar_loss)(params), axis_name)

    return gradient


def _varying(leaf: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Marks a replicated leaf as varying over devices, so that its gradient is local.

    Otherwise the transpose of ``shard_map`` sums the gradients over the devices, and
    the mean that follows would be too large by the number of devices.
    """
    names = axis_name if isinstance(axis_name, tuple | list) else (axis_name,)
    varying = jax.typeof(leaf).manual_axis_type.varying
    missing = tuple(name for name in names if name not in varying)
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf


def _zeros_like(params: Params) -> Any:
    return jax.tree.map(jnp.zeros_like, upcast_half(params))


def _accumulated(
    step: Callable[..., Any], total: Any, fixed: tuple[Any, ...], batches: Iterable[Any]
) -> tuple[Any, tuple[int, int]]:
    """Averages ``step`` over batches; returns the mean and (batches, examples)."""
    number, examples = 0, 0
    for batch in batches:
        leaves = jax.tree.leaves(batch)
        weight = jnp.shape(leaves[0])[0] if leaves and jnp.ndim(leaves[0]) else 1
        number, examples = number + 1, examples + weight
        total = step(total, jnp.float32(weight), *fixed, batch)
    if not examples:
        raise ValueError("mean_flow was given no batches, or only empty ones.")
    return jax.tree.map(lambda x: x / examples, total), (number, examples)


_STEPS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _steps(loss_fn: LossFn) -> tuple[Any, Any]:
    """Returns the two compiled steps of a loss, cached while the loss is alive."""
    try:
        if loss_fn not in _STEPS:
            _STEPS[loss_fn] = _make_steps(weakref.ref(loss_fn))
        return _STEPS[loss_fn]
    except TypeError:  # Not hashable, or without support for weak references.
        return _make_steps(lambda: loss_fn)


def _make_steps(get_loss: Callable[[], Any]) -> tuple[Any, Any]:
    @jax.jit(donate_argnums=0)
    def first(total: Any, weight: jax.Array, params: Params, batch: Any) -> Any:
        gradient = upcast_half(gradient_fn(get_loss(), (batch,), None)(params))
        sums, squares = total
        return (
            jax.tree.map(lambda s, g: s + weight * g, sums, gradient),
            jax.tree.map(lambda s, g: s + weight * g**2, squares, gradient),
        )

    @jax.jit(donate_argnums=0)
    def second(
        total: Any, weight: jax.Array, params: Params, tangent: Any, batch: Any
    ) -> Any:
        tangent = jax.tree.map(lambda t, p: t.astype(p.dtype), tangent, params)
        grad = gradient_fn(get_loss(), (batch,), None)
        _, hessian_gradient = jax.jvp(grad, (params,), (tangent,))
        return jax.tree.map(
            lambda s, h: s + weight * h, total, upcast_half(hessian_gradient)
        )

    return first, second
