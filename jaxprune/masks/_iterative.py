"""Masks built in rounds: score, prune a part, score again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import measures
from jaxprune._types import (
    AxisName,
    LossFn,
    Mask,
    Numeric,
    Params,
    Prunable,
    ScoreFn,
)
from jaxprune.core import _checks, _uint64
from jaxprune.core._dtypes import precision_of
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.core._uint64 import Wide
from jaxprune.masks._schedules import exponential_schedule
from jaxprune.masks._threshold import apply_mask, keep_at_most, keep_count
from jaxprune.scores._flow import Flow, gradient_flow


def iterative_mask(
    score_fn: ScoreFn,
    params: Params,
    *batch: Any,
    sparsity: Numeric,
    rounds: int,
    prunable: Prunable = matrices,
) -> Mask:
    r"""Prunes in rounds, each of which scores the network that the last one left.

    Round r = 1, ..., n scores ``apply_mask(params, mask)`` and removes further weights,
    up to the fraction

    .. math:: s_r = 1 - (1 - s)^{r / n}

    of all prunable weights, exactly. The parameters do not change, and every round uses
    the same batch. All rounds are one compiled loop.

    Args:
      score_fn: ``score_fn(params, *batch) -> scores``, larger = keep: `synflow` in 100
        rounds, `snip` for iterative SNIP, or your own.
      params: the weights.
      *batch: passed to ``score_fn`` in every round.
      sparsity: fraction of prunable weights removed after the last round, in [0, 1). It
        may be traced, so that one compiled program serves all sparsities; the schedule
        of the earlier rounds is then computed in float32.
      rounds: how often to score, at least 1.
      prunable: which leaves to prune; the remaining leaves are kept whole.

    Returns:
      A mask with the structure, shapes and sharding of ``params``.

    Raises:
      ValueError: if ``sparsity`` or ``rounds`` is out of range, nothing is prunable,
        or, outside ``jit``, a score in any round is NaN.
      TypeError: if a leaf is not floating, or ``rounds`` is traced.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> jp.iterative_mask(jp.magnitude, params, sparsity=0.5, rounds=2)
      {'w': Array([[False, False,  True,  True]], dtype=bool)}

    References:
      Tanaka et al., `Pruning neural networks without any data by iteratively conserving
      synaptic flow <https://arxiv.org/abs/2006.05467>`_, NeurIPS 2020, Algorithm 1; de
      Jorge et al., `Progressive Skeletonization <https://arxiv.org/abs/2006.09081>`_,
      ICLR 2021, Section 4 (iterative SNIP).
    """
    _checks.check_callable(score_fn, "score_fn", "score_fn(params, *batch) -> scores")

    def scored(mask: Mask) -> Any:
        return score_fn(apply_mask(params, mask), *batch), mask

    return _in_rounds(scored, params, sparsity, rounds, prunable)


def force_mask(
    loss_fn: LossFn,
    params: Params,
    *batch: Any,
    sparsity: Numeric,
    rounds: int,
    measure: measures.Measure = measures.loss_preservation,
    prunable: Prunable = matrices,
    axis_name: AxisName | None = None,
) -> Mask:
    r"""Prunes in rounds in which removed weights can return (FORCE).

    Round r scores the dense weights with the gradient of the masked network,

    .. math:: s_i = |\theta_i \, \partial L(\theta \odot m) / \partial \theta_i|,

    and keeps the best of all weights, including those removed before, at the sparsity
    :math:`1 - (1 - s)^{r / n}`. All rounds are one compiled loop.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a scalar averaged over the batch.
      params: the weights.
      *batch: passed to ``loss_fn`` in every round.
      sparsity: fraction of prunable weights removed after the last round, in [0, 1). It
        may be traced, so that one compiled program serves all sparsities; the schedule
        of the earlier rounds is then computed in float32.
      rounds: how often to score, at least 1.
      measure: a function of a `Flow`, from `jaxprune.measures` or your own.
      prunable: which leaves to prune; the remaining leaves are kept whole.
      axis_name: inside ``pmap`` or ``shard_map``, the axis to average g and Hg over.

    Returns:
      A mask with the structure, shapes and sharding of ``params``.

    Raises:
      ValueError: if ``sparsity`` or ``rounds`` is out of range, nothing is prunable,
        or, outside ``jit``, a score in any round is NaN.
      TypeError: if a leaf is not floating, the loss is not a scalar, or ``rounds`` is
        traced.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> def loss_fn(params, x):
      ...     return jnp.sum((x @ params["w"]) ** 2)
      >>> params = {"w": jnp.array([[0.1], [2.0], [3.0], [0.2]])}
      >>> jp.force_mask(loss_fn, params, jnp.ones((1, 4)), sparsity=0.5, rounds=2)
      {'w': Array([[False],
             [ True],
             [ True],
             [False]], dtype=bool)}

    References:
      de Jorge et al., `Progressive Skeletonization: Trimming more fat from a network at
      initialization <https://arxiv.org/abs/2006.09081>`_, ICLR 2021, Section 4.
    """
    _checks.check_callable(measure, "measure", "such as jp.measures.grasp")
    flow_fn = gradient_flow(
        loss_fn, order=_order_of(measure, params), axis_name=axis_name
    )

    def scored(mask: Mask) -> Any:
        flow = flow_fn(apply_mask(params, mask), *batch)
        dense = jax.tree.map(lambda p, g: p.astype(g.dtype), params, flow.gradient)
        return measure(flow._replace(params=dense)), None

    return _in_rounds(scored, params, sparsity, rounds, prunable)


def _in_rounds(
    scored: Callable[[Mask], Any],
    params: Params,
    sparsity: Numeric,
    rounds: int,
    prunable: Prunable,
) -> Mask:
    """Scans over rounds; ``scored(mask)`` returns the scores and a prior or None."""
    if not _checks.is_python_number(rounds):
        raise TypeError(
            "rounds must be a Python int, because it is the length of a compiled loop; "
            f"got {type(rounds).__name__}."
        )
    _checks.check_floating(params, "params")
    flags = select_prunable(params, prunable)
    leaves = jax.tree.leaves(params)
    size = sum(p.size for p, flag in zip(leaves, flags, strict=True) if flag)
    rounds = _checks.check_count(rounds, "rounds", "rounds")
    counts = _keep_counts(sparsity, rounds, size)

    def checked(mask: Mask) -> Any:
        scores, prior = scored(mask)
        _checks.check_like(scores, params, "scores", "params")
        _checks.check_floating(scores, "scores")
        return scores, prior

    def round_(state: tuple[Mask, jax.Array], keep: Wide) -> Any:
        mask, ok = state
        scores, prior = checked(mask)
        nans = [jnp.any(jnp.isnan(s)) for s in jax.tree.leaves(scores)]
        return (
            keep_at_most(scores, keep, flags, prior),
            ok & ~jnp.any(jnp.stack(nans)),
        ), None

    # Derived from the leaves, so that it varies over the same axes in shard_map.
    ok = jnp.all(jnp.stack([jnp.ones_like(p, bool, shape=()) for p in leaves]))
    start = (jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params), ok)
    # The loop is traced, batched and compiled in the precision of the scores.
    with precision_of(jax.eval_shape(lambda mask: checked(mask)[0], start[0])):
        (mask, ok), _ = jax.lax.scan(round_, start, jax.tree.map(jnp.asarray, counts))
    if _checks.is_concrete(ok) and not ok:
        raise ValueError(
            "The scores contain NaN in one of the rounds. For synflow of a deep "
            "network pass dtype=jnp.float64. Otherwise look for a loss that overflows "
            "or divides by zero."
        )
    return mask


def _keep_counts(sparsity: Numeric, rounds: int, size: int) -> Wide:
    """Returns how many of ``size`` weights each round keeps."""
    schedule = exponential_schedule(sparsity, rounds)
    if _checks.is_python_number(sparsity):
        removed = [*map(schedule, range(1, rounds)), sparsity]
        return _uint64.wide([size - round(s * size) for s in removed])
    removed = jnp.append(schedule(jnp.arange(1, rounds)), sparsity)
    return jax.vmap(lambda s: keep_count(s, size))(removed)


def _order_of(measure: measures.Measure, params: Params) -> int:
    """Returns the order of flow that a measure needs, found by abstract evaluation."""
    shapes = jax.eval_shape(lambda p: p, params)
    try:
        jax.eval_shape(measure, Flow(shapes, shapes, None, shapes))
    except (TypeError, ValueError):
        return 2
    return 1
