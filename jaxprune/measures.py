r"""Scores computed from a gradient flow: larger = keep.

Each measure takes a `jaxprune.Flow` (weights :math:`\theta`, gradient g, product Hg of
Hessian and gradient, mean squared gradient) and returns a tree of scores like the
parameters. Measures that need Hg raise a ``ValueError`` for a flow of order 1.

All come from one expansion: removing the weight :math:`\theta_i` changes the loss by
:math:`-\theta_i g_i` to first order, and the squared gradient norm by
:math:`-2\,\theta_i (Hg)_i` (Lubana & Dick, `A Gradient Flow Framework for Analyzing
Network Pruning <https://arxiv.org/abs/2009.11839>`_, ICLR 2021).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Params, Prunable, Real, Scores
from jaxprune.core import _checks
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.scores._drive_terms import check_drive, normalized
from jaxprune.scores._flow import Flow, check_flow


def magnitude(flow: Flow) -> Scores:
    r"""Measures the magnitude of each weight, :math:`|\theta|`.

    Args:
      flow: a `jaxprune.Flow` of order 1 or 2.

    Returns:
      Non-negative scores like the flow's ``params``, float32 or wider.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(-2.0))  # g = 12
      >>> float(jp.measures.magnitude(flow))
      2.0

    References:
      Han et al., `Learning both Weights and Connections for Efficient Neural Networks
      <https://arxiv.org/abs/1506.02626>`_, NeurIPS 2015, Section 3.
    """
    return jax.tree.map(jnp.abs, check_flow(flow).params)


def taylor(flow: Flow) -> Scores:
    r"""Measures how much removing a weight lowers the loss, :math:`\theta g`. Signed.

    It is positive where removal lowers the loss to first order, so it is not a score to
    rank weights by. Sum it over a filter and take the absolute value to score filters.

    Args:
      flow: a `jaxprune.Flow` of order 1 or 2.

    Returns:
      Signed scores like the flow's ``params``, float32 or wider.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(-2.0))  # g = 12
      >>> float(jp.measures.taylor(flow))
      -24.0

    References:
      Molchanov et al., `Pruning Convolutional Neural Networks for Resource Efficient
      Inference <https://arxiv.org/abs/1611.06440>`_, ICLR 2017, Section 2.2.
    """
    check_flow(flow)
    return jax.tree.map(jnp.multiply, flow.params, flow.gradient)


def loss_preservation(flow: Flow) -> Scores:
    r"""Measures how much removing a weight changes the loss, :math:`|\theta g|` (SNIP).

    Args:
      flow: a `jaxprune.Flow` of order 1 or 2.

    Returns:
      Non-negative scores like the flow's ``params``, float32 or wider.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(-2.0))  # g = 12
      >>> float(jp.measures.loss_preservation(flow))
      24.0

    References:
      Lee et al., `SNIP: Single-shot Network Pruning based on Connection Sensitivity
      <https://arxiv.org/abs/1810.02340>`_, ICLR 2019, Section 4.1. The name comes from
      Lubana & Dick.
    """
    return jax.tree.map(jnp.abs, taylor(flow))


def biased_loss(flow: Flow, *, origin: Params | None = None) -> Scores:
    r"""Measures loss preservation, weighted by magnitude: :math:`\theta^2 |g|`.

    With ``origin``, the initial weights :math:`\theta_0`, the factor is the distance
    from them instead: :math:`|\theta - \theta_0| \, |\theta g|`.

    Args:
      flow: a `jaxprune.Flow` of order 1 or 2.
      origin: the initial weights, a tree like the flow's ``params``.

    Returns:
      Non-negative scores like the flow's ``params``, float32 or wider.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.
      ValueError: if ``origin`` differs from the weights in structure or shapes.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(-2.0))  # g = 12
      >>> float(jp.measures.biased_loss(flow))
      48.0

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021.
    """
    check_flow(flow)
    moved = flow.params
    if origin is not None:
        _checks.check_like(origin, flow.params, "origin", "the flow's params")
        moved = jax.tree.map(lambda p, o: p - o.astype(p.dtype), flow.params, origin)
    return jax.tree.map(lambda d, s: jnp.abs(d) * s, moved, loss_preservation(flow))


def grasp(flow: Flow) -> Scores:
    r"""Measures how much a weight adds to the gradient norm, :math:`\theta \cdot Hg`.

    The score is signed (GraSP). Removing the smallest raises the gradient norm most.

    Args:
      flow: a `jaxprune.Flow` of order 2.

    Returns:
      Signed scores like the flow's ``params``, float32 or wider.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.
      ValueError: if the flow has order 1, and so no :math:`Hg`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(-2.0))  # g = 12, Hg = -144
      >>> float(jp.measures.grasp(flow))
      288.0

    References:
      Wang et al., `Picking Winning Tickets Before Training by Preserving Gradient Flow
      <https://arxiv.org/abs/2002.07376>`_, ICLR 2020, Section 4.
    """
    return jax.tree.map(jnp.multiply, check_flow(flow).params, _hessian_gradient(flow))


def gradient_preservation(flow: Flow) -> Scores:
    r"""Measures the change of the gradient norm, :math:`|\theta \cdot Hg|`.

    Args:
      flow: a `jaxprune.Flow` of order 2.

    Returns:
      Non-negative scores like the flow's ``params``, float32 or wider.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.
      ValueError: if the flow has order 1, and so no :math:`Hg`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(-2.0))  # g = 12, Hg = -144
      >>> float(jp.measures.gradient_preservation(flow))
      288.0

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021.
    """
    return jax.tree.map(jnp.abs, grasp(flow))


def fisher(flow: Flow) -> Scores:
    r"""Measures the cost of removing a weight near a minimum, :math:`\theta^2 E[g^2]`.

    The mean is over squared gradients of minibatches. With batches of one example, as
    in the paper, :math:`E[g^2]` is the diagonal of the empirical Fisher matrix.

    Args:
      flow: a `jaxprune.Flow` of order 1 or 2.

    Returns:
      Non-negative scores like the flow's ``params``, float32 or wider.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(-2.0))  # g = 12
      >>> float(jp.measures.fisher(flow))
      576.0

    References:
      Theis et al., `Faster gaze prediction with dense networks and Fisher pruning
      <https://arxiv.org/abs/1801.05787>`_, 2018, Section 2.
    """
    check_flow(flow)
    return jax.tree.map(lambda p, s: p**2 * s, flow.params, flow.squared_gradient)


def drive(
    flow: Flow,
    *,
    weights: tuple[Real, Real, Real] = (1, 1, 1),
    normalize: str = "sum",
    combine: str = "sum",
    prunable: Prunable = matrices,
) -> Scores:
    r"""Measures magnitude, sensitivity and distance from convergence together (DRIVE).

    .. math:: s = \alpha \frac{|\theta|}{Z_1} + \beta \frac{|\theta g|}{Z_2}
                + \gamma \frac{|g|}{Z_3}

    We could read the paper's abstract and summaries of it, which name the three terms.
    The weights, the normalization and the sum are our choices, and therefore arguments.
    Without normalization the first term dominates.

    Args:
      flow: a `jaxprune.Flow` of order 1 or 2.
      weights: :math:`(\alpha, \beta, \gamma)`, non-negative; 0 leaves a term out.
      normalize: each Z is the "sum" or "mean" of its term over the prunable weights
        that are not exactly 0, or 1 for "none". A term that is 0 everywhere stays 0.
        "rank" replaces a term by the fraction, in [0, 1], of those weights for which it
        is no larger; it sorts, so it gathers sharded scores.
      combine: "sum", or "product" for the weighted geometric mean
        :math:`\prod_k x_k^{w_k / \sum w}` of the normalized terms x, which ranks as
        the product does and underflows less. With "product", only "rank" changes the
        ranking.
      prunable: which leaves the normalization counts.

    Returns:
      Non-negative scores like the flow's ``params``, float32 or wider.

    Raises:
      TypeError: if ``flow`` is not a `jaxprune.Flow`.
      ValueError: if an option is not one of those above, or nothing is prunable.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: jnp.sum(p**2))(jnp.array([[1.0, 3.0]]))
      >>> jp.measures.drive(flow)  # θ / 4 + θ g / 20 + g / 8
      Array([[0.6, 2.4]], dtype=float32)

    References:
      Saikumar & Varghese, `DRIVE: Dual Gradient-Based Rapid Iterative Pruning
      <https://arxiv.org/abs/2404.03687>`_, 2024.
    """
    check_drive(weights, normalize, combine)
    flags = select_prunable(check_flow(flow).params, prunable)
    counted = [
        p != 0 if flag else None
        for p, flag in zip(jax.tree.leaves(flow.params), flags, strict=True)
    ]
    terms = (
        magnitude,
        loss_preservation,
        lambda flow: jax.tree.map(jnp.abs, flow.gradient),
    )
    weighted = [
        (w, normalized(term(flow), counted, normalize))
        for w, term in zip(weights, terms, strict=True)
        if w
    ]
    total = sum(weights)

    def combined(*xs: jax.Array) -> jax.Array:
        pairs = zip([w for w, _ in weighted], xs, strict=True)
        if combine == "product":
            return functools.reduce(jnp.multiply, [x ** (w / total) for w, x in pairs])
        return functools.reduce(jnp.add, [w * x for w, x in pairs])

    return jax.tree.map(combined, *[tree for _, tree in weighted])


def _hessian_gradient(flow: Flow) -> Any:
    if flow.hessian_gradient is None:
        raise ValueError(
            "This measure needs Hg, but the flow has order 1. Compute it with "
            "jp.gradient_flow(loss_fn, order=2) or jp.mean_flow(..., order=2)."
        )
    return flow.hessian_gradient


Measure = Callable[[Flow], Scores]
