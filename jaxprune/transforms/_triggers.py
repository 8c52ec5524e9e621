"""Triggers that decide when to prune, for use in any training loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Params, Prunable, Real
from jaxprune.core import _checks, _uint64
from jaxprune.core._dtypes import upcast_half
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.masks import _counting


class Trigger(NamedTuple):
    """Two pure functions, like an optax transformation, that decide when to prune.

    Both can be jitted, and the types of the state do not change.

    Attributes:
      init: ``init(params) -> state``.
      update: ``update(tree, state) -> (due, state)``, where ``due`` is a scalar bool.
    """

    init: Callable[[Params], Any]
    update: Callable[[Any, Any], tuple[jax.Array, Any]]


class EarlyCropState(NamedTuple):
    """The state of `earlycrop_trigger`.

    Attributes:
      step: the number of calls of ``update``, an int32 scalar.
      reference: a copy of the weights that were passed to ``init``.
      first: the distance of the reference from the weights of the first update.
      distance: the distance of the reference from the weights of the last update.
    """

    step: jax.Array
    reference: Params
    first: jax.Array
    distance: jax.Array


class EpiState(NamedTuple):
    """The state of `epi_trigger`.

    Attributes:
      step: the number of calls of ``update``, an int32 scalar.
      layers: which leaves are layers, bool of shape (leaves,).
      kept: the kept weights of each leaf in the last masks, of shape (window, leaves),
        the newest first.
      indicators: the last indicators, of shape (window + 1,), the newest first; -inf
        where undefined.
    """

    step: jax.Array
    layers: jax.Array
    kept: jax.Array
    indicators: jax.Array


def earlycrop_trigger(sparsity: Real, *, prunable: Prunable = matrices) -> Trigger:
    r"""Triggers pruning once the weights stop moving away from a reference (EarlyCroP).

    With reference weights :math:`\theta_0` and weights :math:`\theta_e` after epoch e,

    .. math:: D_e = \frac{\|\theta_e - \theta_0\|_2}{\|\theta_0\|_2}, \qquad
       \text{prune when } |D_e - D_{e-1}| < D_1 (1 - p),

    so a higher sparsity p waits longer. As :math:`D_0 = 0`, the first update never
    triggers. In the authors' code the reference is the weights after the first epoch,
    not the initial ones: call ``init`` there, and ``update`` after each later epoch.
    For structured pruning the code replaces :math:`1 - p` by
    :math:`\min(0.9 - p, 0.99)`; use ``earlycrop_trigger(sparsity + 0.1)``.

    Args:
      sparsity: fraction of prunable weights that you will remove, in [0, 1).
      prunable: which leaves are measured. We could not determine the choice of the
        authors' code; ours is the leaves that are pruned.

    Returns:
      A `Trigger` whose ``update(params, state)`` takes the current weights. Its state
      holds a copy of the reference. NaN weights never trigger.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1); at init, if nothing is prunable; at
        update, if ``params`` do not match the reference.
      TypeError: at init, if a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> trigger = jp.earlycrop_trigger(0.5)
      >>> state = trigger.init({"w": jnp.array([[1.0]])})
      >>> for w in (2.0, 3.0, 3.25):  # Moves of 1, 1 and 0.25.
      ...     due, state = trigger.update({"w": jnp.array([[w]])}, state)
      ...     print(due)
      False
      False
      True

    References:
      Rachwan et al., `Winning the Lottery Ahead of Time: Efficient Early Network
      Pruning <https://arxiv.org/abs/2206.10451>`_, ICML 2022, and the authors' code
      for the rule.
    """
    _checks.check_sparsity(sparsity)

    def init(params: Params) -> EarlyCropState:
        _checks.check_floating(params, "params")
        select_prunable(params, prunable)
        copy = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
        zero = jnp.zeros([], jnp.float32)
        return EarlyCropState(jnp.zeros([], jnp.int32), copy, zero, zero)

    def update(
        params: Params, state: EarlyCropState
    ) -> tuple[jax.Array, EarlyCropState]:
        _checks.check_like(params, state.reference, "params", "the reference")
        flags = select_prunable(params, prunable)
        moved = jax.tree.map(
            lambda p, r: p - r, upcast_half(params), upcast_half(state.reference)
        )
        distance = _norm(moved, flags) / _norm(upcast_half(state.reference), flags)
        first = jnp.where(state.step == 0, distance, state.first)
        due = jnp.abs(distance - state.distance) < first * (1.0 - sparsity)
        step = state.step + 1
        return due, EarlyCropState(step, state.reference, first, distance)

    return Trigger(init, update)


def epi_trigger(
    threshold: Real, *, window: int = 5, prunable: Prunable = matrices
) -> Trigger:
    r"""Triggers pruning once the pruned network's layer sizes stop changing (EPI).

    After each epoch t, compute the mask that pruning would give now, and count the
    weights :math:`n_l^t` that each of the L layers would keep. The similarity of two
    such networks is

    .. math:: \Psi(t, u) = 1 - \frac{1}{L} \sum_l d_l, \qquad
       d_l = \frac{|n_l^t - n_l^u|}{n_l^t + n_l^u},

    where d is 0 if both counts are 0. The early pruning indicator is the mean
    similarity to the last r networks,
    :math:`\mathrm{EPI}_t = \frac{1}{r} \sum_{j=1}^r \Psi(t, t - j)`. It triggers when
    :math:`\mathrm{EPI}_t \ge \tau` and :math:`\mathrm{EPI}_t` is at least each of the r
    previous indicators. It is defined from update r + 1 on.

    We could not read the paper. The rule comes from a re-implementation and the
    authors' figures, which disagree on r: the re-implementation uses 20. The default 5,
    and using the same r for the previous indicators, are from memory of the paper.

    Args:
      threshold: the smallest indicator that triggers, in (0, 1]. The authors' figures
        show 0.983 for scores by magnitude and 0.944 for scores by gradient.
      window: r, the number of earlier masks and indicators to compare with.
      prunable: which leaves of the tree that is passed to ``init`` are layers.

    Returns:
      A `Trigger`. ``init(params)`` reads structure, shapes and dtypes only.
      ``update(mask, state)`` takes a tree of bool with the structure of ``params`` and
      any shapes. To count neurons instead of weights, pass group scores to ``init``
      with ``prunable=jp.by_path("")``, and one bool per neuron to ``update``.
      ``state.indicators[0]`` is the latest indicator, or -inf if it is undefined.

    Raises:
      ValueError: if ``threshold`` is not in (0, 1] or ``window`` is less than 1; at
        init, if nothing is prunable; at update, if the number of leaves differs.
      TypeError: at update, if the mask is not bool.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> trigger = jp.epi_trigger(0.9, window=1)
      >>> params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((2, 2))}
      >>> state = trigger.init(params)
      >>> rising, even = jnp.array([[4.0, 5.0], [6.0, 7.0]]), jnp.ones((2, 2))
      >>> for scores in (rising, rising.T - 4, rising.T - 4):
      ...     mask = jp.global_mask({"a": scores, "b": even}, 0.5)
      ...     due, state = trigger.update(mask, state)
      ...     print(due, state.indicators[0])
      False -inf
      False 0.4285714
      True 1.0

    References:
      Shen et al., `When to Prune? A Policy towards Early Structural Pruning
      <https://arxiv.org/abs/2110.12007>`_, CVPR 2022.
    """
    if not _checks.is_python_number(threshold) or not 0 < threshold <= 1:
        raise ValueError(
            "threshold must be a number in (0, 1], the similarity of masks that "
            f"triggers pruning; got {threshold!r}. For scores by magnitude the authors "
            "show 0.983."
        )
    window = _checks.static_count(window, "window", "earlier masks")

    def init(params: Params) -> EpiState:
        flags = select_prunable(params, prunable)
        return EpiState(
            jnp.zeros([], jnp.int32),
            jnp.array(flags),
            jnp.zeros((window, len(flags)), jnp.float32),
            jnp.full((window + 1,), -jnp.inf, jnp.float32),
        )

    def update(mask: Mask, state: EpiState) -> tuple[jax.Array, EpiState]:
        _checks.check_mask(mask, mask)
        leaves = [jnp.asarray(m) for m in jax.tree.leaves(mask)]
        if len(leaves) != state.layers.size:
            raise ValueError(
                f"mask has {len(leaves)} leaves, but the tree passed to init has "
                f"{state.layers.size}. Pass masks with the structure of that tree."
            )
        kept = _uint64.to_float(_counting.count_true(leaves))
        total = kept[None] + state.kept
        change = jnp.abs(kept[None] - state.kept) / jnp.maximum(total, 1.0)
        likeness = 1.0 - jnp.mean(change, axis=1, where=state.layers[None])
        indicator = jnp.where(state.step < window, -jnp.inf, jnp.mean(likeness))
        before = state.indicators[:-1]
        due = (indicator >= threshold) & jnp.all(indicator >= before)
        return due, EpiState(
            state.step + 1,
            state.layers,
            jnp.concatenate([kept[None], state.kept[:-1]]),
            jnp.concatenate([indicator[None], before]),
        )

    return Trigger(init, update)


def _norm(tree: Any, flags: list[bool]) -> jax.Array:
    pairs = zip(jax.tree.leaves(tree), flags, strict=True)
    squares = [jnp.sum(jnp.square(x)) for x, flag in pairs if flag]
    return jnp.sqrt(sum(squares)).astype(jnp.float32)
