"""Meta-gradients: how the loss after some training depends on the initial weights."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import AxisName, LossFn, Numeric, Params, ScoreFn
from jaxprune.core import _checks
from jaxprune.scores._flow import gradient_fn
from jaxprune.scores._from_loss import snip


def prospr(
    loss_fn: LossFn, *, learning_rate: Numeric = 0.1, axis_name: AxisName | None = None
) -> ScoreFn:
    r"""Builds the ProsPr score: how removing a weight changes the loss after M steps.

    The M steps are SGD from the given weights, each on its own batch, and the loss is
    taken on one more batch:

    .. math:: \theta^{(j+1)} = \theta^{(j)} - \eta \nabla L_j(\theta^{(j)}), \qquad
       s_i = \left| \theta_i \, \partial L(\theta^{(M)}) / \partial \theta_i \right|,

    where the derivative with respect to the initial weights goes through all steps.
    This is `snip` of the loss after training; with M = 0 it is `snip`. The steps are
    one ``scan`` that is recomputed step by step in the backward pass, so it needs the
    memory of one step and of M copies of the weights.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a twice differentiable scalar
        averaged over the batch.
      learning_rate: the step size :math:`\eta`, at least 0; it may be traced.
      axis_name: inside ``pmap`` or ``shard_map``, the axis to average gradients over,
        in the steps and at the end.

    Returns:
      A score function ``score(params, batches, *batch)``, where ``batches`` is a tuple
      like ``batch`` whose arrays have an additional leading axis of length M (3 in the
      paper). Its scores are non-negative, like ``params``, float32 or wider.

    Raises:
      TypeError: if ``learning_rate`` is not a number; when called, if the loss is not a
        scalar, a leaf is not floating, or ``batches`` is not a tuple like ``batch``.
      ValueError: if ``learning_rate`` is below 0; when called, if the arrays of
        ``batches`` differ in the length of their leading axis.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> def loss_fn(params, x):
      ...     return jnp.sum((params["w"] - x) ** 2) / 2
      >>> params, batches = {"w": jnp.array([1.0, 2.0])}, (jnp.zeros((3, 2)),)
      >>> jp.prospr(loss_fn, learning_rate=0.5)(params, batches, jnp.zeros(2))["w"]
      Array([0.015625, 0.0625  ], dtype=float32)

    References:
      Alizadeh et al., `Prospect Pruning: Finding Trainable Weights at Initialization
      using Meta-Gradients <https://arxiv.org/abs/2202.08132>`_, ICLR 2022, Section 3.
    """
    _checks.check_callable(loss_fn, "loss_fn", "loss_fn(params, *batch) -> loss")
    known = _checks.is_python_number(learning_rate)
    if not known and not (
        isinstance(learning_rate, jax.Array) and learning_rate.ndim == 0
    ):
        raise TypeError(
            "learning_rate must be a number, the step size of gradient descent; got "
            f"{_checks.described(learning_rate)}."
        )
    if known and not learning_rate >= 0:
        raise ValueError(f"learning_rate must be at least 0; got {learning_rate}.")

    def trained_loss(params: Params, batches: tuple[Any, ...], *batch: Any) -> Any:
        def step(params: Any, batch: Any) -> tuple[Any, None]:
            gradient = gradient_fn(loss_fn, batch, axis_name)(params)
            stepped = jax.tree.map(
                lambda p, g: (p - learning_rate * g).astype(p.dtype), params, gradient
            )
            return stepped, None

        _checks.check_floating(params, "params")
        if not isinstance(batches, tuple | list) or len(batches) != len(batch):
            raise TypeError(
                f"batches must be a tuple like batch, here of length {len(batch)}, "
                "whose arrays have one entry per step along their leading axis; got "
                f"{_checks.described(batches)}."
            )
        shapes = [jnp.shape(x) for x in jax.tree.leaves(batches)]
        if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
            raise ValueError(
                "The arrays of batches must have one entry per step along their "
                f"leading axis, of one length; got the shapes {shapes}."
            )
        trained, _ = jax.lax.scan(jax.checkpoint(step), params, batches)
        return loss_fn(trained, *batch)

    return snip(trained_loss, axis_name=axis_name)
