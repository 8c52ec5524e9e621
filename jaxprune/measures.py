r"""Elementwise measures of a gradient flow: larger = keep.

Each takes a `jaxprune.Flow` (weights :math:`\theta`, gradient g, Hessian-gradient
product Hg, mean squared gradient) and returns a tree of scores like the parameters.
Measures that need Hg raise ``ValueError`` for a flow of order 1.

All are terms of one expansion. Removing the weight :math:`\theta_i` changes the loss by
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
    r"""How large a weight is: :math:`|\theta|`.

    Args:
      flow: of order 1 or 2.

    Returns:
      Non-negative scores like the weights, float32 or wider.

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
    r"""The loss that a weight's removal takes away, :math:`\theta g`, signed.

    Positive where removal lowers the loss to first order, so by itself it is no reason
    to keep. Sum it over a filter, then take the absolute value.

    Args:
      flow: of order 1 or 2.

    Returns:
      Signed scores like the weights, float32 or wider.

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
    r"""How much removal changes the loss to first order: :math:`|\theta g|` (SNIP).

    Args:
      flow: of order 1 or 2.

    Returns:
      Non-negative scores like the weights, float32 or wider.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> flow = jp.gradient_flow(lambda p: p**3)(jnp.array(-2.0))  # g = 12
      >>> float(jp.measures.loss_preservation(flow))
      24.0

    References:
      Lee et al., `SNIP: Single-shot Network Pruning based on Connection Sensitivity
      <https://arxiv.org/abs/1810.02340>`_, ICLR 2019, Section 4.1; the name is that of
      Lubana & Dick.
    """
    return jax.tree.map(jnp.abs, taylor(flow))


def biased_loss(flow: Flow, *, origin: Params | None = None) -> Scores:
    r"""Loss preservation biased to large weights: :math:`\theta^2 |g|`.

    With ``origin``, the weights at initialisation :math:`\theta_0`, it is biased to
    those that moved: :math:`|\theta - \theta_0| \, |\theta g|`.

    Args:
      flow: of order 1 or 2.
      origin: the weights at initialisation, a tree like the flow's ``params``.

    Returns:
      Non-negative scores like the weights, float32 or wider.

    Raises:
      ValueError: if ``origin`` is not like the weights.

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
    r"""The gradient norm a weight carries, :math:`\theta \cdot Hg`, signed (GraSP).

    Removing the smallest, as everywhere here, raises the gradient norm most.

    Args:
      flow: of order 2.

    Returns:
      Signed scores like the weights, float32 or wider.

    Raises:
      ValueError: if the flow is of order 1, without :math:`Hg`.

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
    r"""How much removal changes the gradient norm: :math:`|\theta \cdot Hg|`.

    Args:
      flow: of order 2.

    Returns:
      Non-negative scores like the weights, float32 or wider.

    Raises:
      ValueError: if the flow is of order 1, without :math:`Hg`.

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
    r"""The loss a removal costs near a minimum: :math:`\theta^2 \, E[g^2]`.

    The mean is over minibatch gradients squared, not over single examples: a diagonal
    of the empirical Fisher matrix only for batches of one.

    Args:
      flow: of order 1 or 2.

    Returns:
      Non-negative scores like the weights, float32 or wider.

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
    r"""Size, sensitivity and distance from convergence, in one score (DRIVE).

    .. math:: s = \alpha \frac{|\theta|}{Z_1} + \beta \frac{|\theta g|}{Z_2}
                + \gamma \frac{|g|}{Z_3}

    Our reading of a paper of which only the abstract and summaries were at hand. They
    name the three terms; the weights, the normalisation and the sum are choices, and so
    arguments. Without a normalisation the first term decides nearly alone.

    Args:
      flow: of order 1 or 2.
      weights: :math:`(\alpha, \beta, \gamma)`, not negative; 0 leaves a term out.
      normalize: what each Z is, over the prunable weights that are not exactly 0: their
        term's "sum" or "mean", or "none" for 1. A term that is 0 everywhere stays 0.
        "rank" replaces a term by the share of those weights where it is no larger,
        in [0, 1]: it sorts them, so it gathers sharded scores, and is for comparing.
      combine: "sum", or "product" for :math:`\prod_k x_k^{w_k / \sum w}` of the
        normalised terms x, the product as a mean: it ranks the same and underflows
        less. Only "rank" changes the ranking there.
      prunable: which leaves the normalisation counts.

    Returns:
      Non-negative scores like the weights, float32 or wider.

    Raises:
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
    weighed = [
        (w, normalized(term(flow), counted, normalize))
        for w, term in zip(weights, terms, strict=True)
        if w
    ]
    total = sum(weights)

    def combined(*xs: jax.Array) -> jax.Array:
        pairs = zip([w for w, _ in weighed], xs, strict=True)
        if combine == "product":
            return functools.reduce(jnp.multiply, [x ** (w / total) for w, x in pairs])
        return functools.reduce(jnp.add, [w * x for w, x in pairs])

    return jax.tree.map(combined, *[tree for _, tree in weighed])


def _hessian_gradient(flow: Flow) -> Any:
    if flow.hessian_gradient is None:
        raise ValueError(
            "This measure needs Hg, but the flow is of order 1. Build it with order=2: "
            "jp.gradient_flow(loss_fn, order=2) or jp.mean_flow(..., order=2)."
        )
    return flow.hessian_gradient


Measure = Callable[[Flow], Scores]
