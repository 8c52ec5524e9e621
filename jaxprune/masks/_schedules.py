"""Sparsity schedules that optax lacks: functions from a round to a sparsity.

For the cubic schedule of Zhu & Gupta use ``optax.polynomial_schedule(0.0, sparsity,
power=3, transition_steps=...)``.
"""

from collections.abc import Callable

from jaxprune._types import Numeric, Real
from jaxprune.core import _checks


def hyperbolic_schedule(sparsity: Real, rounds: int) -> Callable[[Numeric], Numeric]:
    r"""Removes much in early rounds and little in late ones.

    With target p and n rounds, the fraction removed after round r is

    .. math:: s_r = 1 - \frac{1 - p}{1 - p + p \, r / n}.

    It follows from the published code, which removes the fraction
    :math:`p / (r p + n (1 - p))` of the remaining weights in round r.

    Args:
      sparsity: fraction of prunable weights removed after the last round, in [0, 1).
      rounds: the number of rounds, at least 1.

    Returns:
      A schedule ``round -> sparsity`` for rounds 0 to ``rounds``, which may be traced.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1) or ``rounds`` is less than 1.

    Example:
      >>> import jaxprune as jp
      >>> schedule = jp.hyperbolic_schedule(0.75, 5)
      >>> [round(1 - schedule(r), 4) for r in range(6)]
      [1.0, 0.625, 0.4545, 0.3571, 0.2941, 0.25]

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021, and the authors' code.
    """
    _checks.check_sparsity(sparsity)
    _checks.check_count(rounds, "rounds", "rounds")

    def schedule(round_: Numeric) -> Numeric:
        kept = 1.0 - sparsity
        return 1.0 - kept / (kept + sparsity * round_ / rounds)

    return schedule


def exponential_schedule(
    sparsity: Numeric, rounds: int
) -> Callable[[Numeric], Numeric]:
    r"""Removes the same fraction of the remaining weights in every round.

    With target p and n rounds, the fraction removed after round r is

    .. math:: s_r = 1 - (1 - p)^{r / n}.

    Args:
      sparsity: fraction of prunable weights removed after the last round, in [0, 1); it
        may be traced.
      rounds: the number of rounds, at least 1.

    Returns:
      A schedule ``round -> sparsity`` for rounds 0 to ``rounds``, which may be traced.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1) or ``rounds`` is less than 1.

    Example:
      >>> import jaxprune as jp
      >>> schedule = jp.exponential_schedule(0.75, 2)
      >>> [schedule(r) for r in range(3)]
      [0.0, 0.5, 0.75]

    References:
      Tanaka et al., `Pruning neural networks without any data by iteratively conserving
      synaptic flow <https://arxiv.org/abs/2006.05467>`_, NeurIPS 2020, Algorithm 1.
    """
    _checks.check_sparsity(sparsity)
    _checks.check_count(rounds, "rounds", "rounds")

    def schedule(round_: Numeric) -> Numeric:
        return 1.0 - (1.0 - sparsity) ** (round_ / rounds)

    return schedule
