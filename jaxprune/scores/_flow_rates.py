"""Rates of change of norms and loss along the gradient flow."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.scores._flow import Flow, check_flow


class Rate(NamedTuple):
    """A rate of change: the contribution of each leaf, and their sum."""

    leaves: Any
    total: jax.Array


class FlowRates(NamedTuple):
    r"""Rates of change along :math:`d\theta/dt = -g`, as returned by `flow_rates`.

    Attributes:
      squared_norm: :math:`d|\theta|^2/dt = -2\,\theta^T g`.
      squared_norm_second: :math:`d^2|\theta|^2/dt^2 = 2(|g|^2 + \theta^T H g)`, or
        None.
      loss: :math:`dL/dt = -|g|^2`.
      squared_gradient: :math:`d|g|^2/dt = -2\,g^T H g`, or None.
    """

    squared_norm: Rate
    squared_norm_second: Rate | None
    loss: Rate
    squared_gradient: Rate | None


def flow_rates(flow: Flow) -> FlowRates:
    r"""Computes how fast norms and loss change along the gradient flow.

    .. math::

        \frac{d|\theta|^2}{dt} = -2\theta^T g, \quad
        \frac{d^2|\theta|^2}{dt^2} = 2(|g|^2 + \theta^T H g), \quad
        \frac{dL}{dt} = -|g|^2, \quad
        \frac{d|g|^2}{dt} = -2 g^T H g.

    Each is a sum over weights, so each leaf contributes a part. The first is 0 for
    weights whose scale a batch normalization in train mode removes.

    Args:
      flow: from `gradient_flow` or `mean_flow`.

    Returns:
      A `FlowRates` of float32 scalars or wider, per leaf and in total. The two rates
      that need :math:`Hg` are None at order 1.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: 0.5 * jnp.sum(p**2))(jnp.array([3.0, 4.0]))
      >>> rates = jp.flow_rates(flow)
      >>> float(rates.loss.total), float(rates.squared_norm.total)
      (-25.0, -50.0)

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021.
    """
    check_flow(flow)
    theta, g, hg = flow.params, flow.gradient, flow.hessian_gradient

    def rate(fn: Callable[..., jax.Array], *trees: Any) -> Rate:
        leaves = jax.tree.map(lambda *xs: jnp.sum(fn(*xs)), *trees)
        return Rate(leaves, sum(jax.tree.leaves(leaves)))  # pyright: ignore

    return FlowRates(
        squared_norm=rate(lambda t, g: -2 * t * g, theta, g),
        squared_norm_second=None
        if hg is None
        else rate(lambda t, g, hg: 2 * (g**2 + t * hg), theta, g, hg),
        loss=rate(lambda g: -(g**2), g),
        squared_gradient=None if hg is None else rate(lambda g, h: -2 * g * h, g, hg),
    )
