"""Sparsity schedules that optax lacks: functions of a round to a sparsity.

For the cubic of Zhu & Gupta use ``optax.polynomial_schedule(0.0, sparsity, power=3,
transition_steps=...)``.
"""

from typing import Any

from jaxprune._types import Real
from jaxprune.core import _checks


def hyperbolic_schedule(sparsity: Real, rounds: int) -> Any:
    r"""Removes an even share of the whole, counted from what remains, in every round.

    With target p and n rounds, the fraction removed after round r is

    .. math:: s_r = 1 - \frac{1 - p}{1 - p + p \, r / n},

    the product of the published code's :math:`p_r = p / (r p + n (1 - p))` of the
    current weights in each round: much is removed early, little late.

    Args:
      sparsity: the fraction removed after the last round, in [0, 1).
      rounds: the number of rounds, at least 1.

    Returns:
      A schedule ``round -> sparsity`` for rounds 0 to ``rounds``, Python or traced.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1) or ``rounds`` is less than 1.

    Example:
      >>> import jaxprune as jp
      >>> schedule = jp.hyperbolic_schedule(0.75, 5)
      >>> [round(1 - schedule(r), 4) for r in range(6)]
      [1.0, 0.625, 0.4545, 0.3571, 0.2941, 0.25]

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021; the formula is that of the
      authors' code.
    """
    _checks.check_sparsity(sparsity)
    _checks.check_count(rounds, "rounds", "rounds")

    def schedule(round_: Any) -> Any:
        kept = 1.0 - sparsity
        return 1.0 - kept / (kept + sparsity * round_ / rounds)

    return schedule


def exponential_schedule(sparsity: Any, rounds: int) -> Any:
    r"""Keeps the same share of what remains in every round.

    With target p and n rounds, the fraction removed after round r is

    .. math:: s_r = 1 - (1 - p)^{r / n}.

    Args:
      sparsity: the fraction removed after the last round, in [0, 1); it may be traced.
      rounds: the number of rounds, at least 1.

    Returns:
      A schedule ``round -> sparsity`` for rounds 0 to ``rounds``, Python or traced.

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

    def schedule(round_: Any) -> Any:
        return 1.0 - (1.0 - sparsity) ** (round_ / rounds)

    return schedule
