"""DRIVE's score, built from a loss."""

from jaxprune import measures
from jaxprune._types import AxisName, LossFn, Prunable, Real, ScoreFn, Scores
from jaxprune.core._prunable import matrices
from jaxprune.scores._drive_terms import check_drive
from jaxprune.scores._flow import Flow
from jaxprune.scores._from_loss import from_measure


def drive(
    loss_fn: LossFn,
    *,
    weights: tuple[Real, Real, Real] = (1, 1, 1),
    normalize: str = "sum",
    combine: str = "sum",
    prunable: Prunable = matrices,
    axis_name: AxisName | None = None,
) -> ScoreFn:
    r"""Builds the DRIVE score: magnitude, sensitivity and distance from convergence.

    .. math:: s_i = \alpha \frac{|\theta_i|}{Z_1} + \beta \frac{|\theta_i g_i|}{Z_2}
                  + \gamma \frac{|g_i|}{Z_3}.

    It is meant for networks that were trained for a few epochs, and for pruning in
    rounds with `iterative_mask`, where each Z counts the remaining weights only.

    We could read the paper's abstract and summaries of it, which name the three terms
    :math:`|\theta|`, :math:`|\theta g|` (SNIP) and :math:`|g|`. How they are weighted,
    normalized and combined is our choice, and therefore an argument. See
    `measures.drive`.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a scalar averaged over the batch.
      weights: :math:`(\alpha, \beta, \gamma)`, non-negative; 0 leaves a term out.
      normalize: "sum" or "mean" divides a term by its sum or mean over the prunable
        weights that are not 0, "none" leaves it unchanged, and "rank" replaces it by
        the fraction of those weights for which it is no larger.
      combine: "sum" or "product" of the terms.
      prunable: which leaves the normalization counts.
      axis_name: inside ``pmap`` or ``shard_map``, the axis to average gradients over.

    Returns:
      A score function ``score(params, *batch)``. Its scores are non-negative, like
      ``params``, float32 or wider.

    Raises:
      ValueError: if ``weights`` are negative or all 0, or ``normalize`` or ``combine``
        is unknown; when called, if nothing is prunable.
      TypeError: when called, if the loss is not a scalar or a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> score = jp.drive(lambda p: jnp.sum(p**2), normalize="none")
      >>> score(jnp.array([[1.0, -2.0]]))  # |θ| + 2θ² + 2|θ|
      Array([[ 5., 14.]], dtype=float32)

    References:
      Saikumar & Varghese, `DRIVE: Dual Gradient-Based Rapid Iterative Pruning
      <https://arxiv.org/abs/2404.03687>`_, 2024.
    """
    check_drive(weights, normalize, combine)

    def measure(flow: Flow) -> Scores:
        return measures.drive(
            flow,
            weights=weights,
            normalize=normalize,
            combine=combine,
            prunable=prunable,
        )

    return from_measure(measure, loss_fn, 1, axis_name)
