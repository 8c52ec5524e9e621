"""K-starts: dense training chooses the fittest of k random masks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxprune._types import Key, Mask, Numeric, Params, Prunable, Scores
from jaxprune.core import _checks
from jaxprune.core._dtypes import upcast_half
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.masks._threshold import apply_mask, layerwise_mask
from jaxprune.scores._from_loss import random
from jaxprune.transforms._keep_sparse import (
    incremented,
    require_params,
    zero_pruned,
    zeros_first,
)
from jaxprune.transforms._state import initial_mask, narrowed
from jaxprune.transforms._states import KStartsState
from jaxprune.transforms._when_due import when_due


def k_starts(
    key: Key,
    k: int,
    sparsity: PyTree[Numeric],
    *,
    select_at: int | jax.Array,
    fitness: str = "both",
    mode: str = "shared",
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Chooses the fittest of k random masks: the last link of an optax chain.

    All weights, or those of the union of the k masks, are trained until update
    ``select_at``, which chooses the fittest mask and prunes with it. Nothing is reset.
    The fitness of a mask :math:`m` is the share of the weights' magnitude, or of the
    gradients' magnitude so far, that it keeps,

    .. math:: F = \frac{1}{n} \sum_{l=1}^{n} \frac{\sum_{i \in l} m_i x_i}
                                                  {\sum_{i \in l} x_i},
              \qquad x = |\theta| \text{ or } \sum_{t} |g_t|,

    averaged over the n prunable leaves, and for "both" over the two. We could read only
    the paper's abstract. Which weights are trained before the choice, the share per
    leaf (without which wide layers decide) and the sum over updates 1 to ``select_at``
    are our choices.

    Two other readings of the paper need no link. To train through another mask in each
    step, pass ``layerwise_mask(random(keys[step % k])(params), sparsity)`` as both
    masks of `forward_sparse`, with ``keys = jax.random.split(key, k)``. To train k
    networks with one mask each, use ``vmap`` over those keys.

    All masks keep the same counts, so with n weights their shares differ by about
    :math:`1 / \sqrt n`. Look at ``fitness`` in the state before you trust the winner.

    The masks are drawn from the key one at a time, and only the best is kept. Weights
    that are already pruned, or exactly 0 before the update because of an earlier link,
    are removed first in all of them. (Weights that an earlier link removes in the same
    update are not seen yet.) Inside ``shard_map`` on sharded parameters each shard
    chooses its own mask; pass ``check_vma=False`` there, because ``fitness`` then
    differs between shards.

    Args:
      key: a JAX random key. Its data is copied into the state, and read from there.
      k: the number of masks, at least 1; with 1 this is a random static mask.
      sparsity: fraction of each prunable leaf removed, in [0, 1): a number, or a tree
        of numbers, such as `erk` returns.
      select_at: the update that chooses the mask, at least 1.
      fitness: "magnitude" of the weights before the update, "gradient", or "both".
      mode: which weights are trained before the choice. "shared" trains all weights,
        and "union" those that at least one of the masks keeps. The remaining weights
        are 0 after the first update; to start with them at 0, use
        ``apply_mask(params, get_mask(state, params))``.
      prunable: which leaves to prune; the remaining leaves are kept whole.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `KStartsState`. Pass the
      gradients, a tree like the parameters, as the extra argument ``grad``:
      ``tx.update(grads, opt_state, params, grad=grads)``. Without it, the link sums the
      magnitudes of the updates that it receives. With Adam these are nearly equal
      everywhere, and every update writes them to memory, even after the choice.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), ``k`` or ``select_at`` is less than
        1, or ``fitness`` or ``mode`` is invalid; at update, if ``params`` is missing or
        the gradients do not match it.
      TypeError: if ``key`` is not a random key; at update, if a leaf is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> link = jp.k_starts(jax.random.key(0), 20, 0.5, select_at=2)
      >>> tx = optax.chain(optax.sgd(0.1), link)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = {"w": jnp.array([[0.0, 0.0, 0.0, 1.0]])}
      ...     updates, state = tx.update(grads, state, params, grad=grads)
      ...     params = optax.apply_updates(params, updates)
      >>> optax.tree.get(state, "mask")
      {'w': Array([[False, False,  True,  True]], dtype=bool)}
      >>> round(float(jnp.max(optax.tree.get(state, "fitness"))), 2)
      0.85

    References:
      Haroon, `What to Prune and What Not to Prune at Initialization
      <https://arxiv.org/abs/2209.02201>`_, 2022.
    """
    _checks.check_key(key)
    k = _checks.static_count(k, "k", "masks")
    _checks.check_count(select_at, "select_at", "updates")
    if sparsity is None or jax.tree_util.all_leaves([sparsity]):
        _checks.check_sparsity(sparsity)
    if fitness not in _FITNESS:
        raise ValueError(
            f"fitness must be 'magnitude', 'gradient' or 'both'; got {fitness!r}. The "
            "mask that keeps the largest share of it is chosen."
        )
    if mode not in ("shared", "union"):
        raise ValueError(
            f"mode must be 'shared' or 'union'; got {mode!r}. Until the choice, "
            "'shared' trains all weights and 'union' those that any mask keeps."
        )
    by_weight, by_gradient = _FITNESS[fitness]

    def union(params: Params, whole: Mask) -> Mask:
        def body(found: Mask, key: jax.Array) -> tuple[Mask, None]:
            mask = layerwise_mask(random(key)(params), sparsity, prunable=prunable)
            return jax.tree.map(jnp.logical_or, found, mask), None

        nothing = jax.tree.map(jnp.zeros_like, whole)
        return jax.lax.scan(body, nothing, jax.random.split(key, k))[0]

    def init(params: Params) -> KStartsState:
        mask = initial_mask(None, params)
        if mode == "union" and jax.tree.leaves(params):
            mask = union(params, mask)
        return KStartsState(
            step=jnp.zeros([], jnp.int32),
            mask=mask,
            evidence=_no_evidence(params) if by_gradient else (),
            fitness=jnp.zeros(k, jnp.float32),
            key=jnp.array(jax.random.key_data(key), copy=True),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        *,
        grad: Any = None,
        **extra: Any,
    ) -> tuple[Any, KStartsState]:
        del extra
        given = require_params(params, updates, "k_starts")
        _checks.check_floating(given, "params")
        step = incremented(state.step)
        evidence = state.evidence
        if by_gradient:
            gradient = updates if grad is None else narrowed(grad, given)
            _checks.check_like(gradient, given, "grad", "params")
            evidence = when_due(
                step <= select_at,
                lambda e: _gathered(e, gradient, state.mask),
                evidence,
            )

        def selected(value: tuple[Mask, jax.Array]) -> tuple[Mask, jax.Array]:
            prior, _ = value
            impl = jax.random.key_impl(key)
            keys = jax.random.split(jax.random.wrap_key_data(state.key, impl=impl), k)
            flags = select_prunable(given, prunable)
            signals = [jax.tree.map(jnp.abs, upcast_half(given))] * by_weight
            signals += [evidence] * by_gradient

            def body(best: tuple[Mask, jax.Array], key: jax.Array) -> Any:
                noise = zeros_first(random(key)(given), apply_mask(given, prior))
                mask = layerwise_mask(noise, sparsity, prunable=prunable, prior=prior)
                fit = jnp.mean(jnp.stack([_share(mask, x, flags) for x in signals]))
                # The first of equal masks wins. A NaN ranks below every number, but
                # above the start value, so that some mask is chosen.
                value = jnp.where(jnp.isnan(fit), -0.5, fit)
                better = value > best[1]
                return jax.tree.map(
                    lambda new, old: jnp.where(better, new, old), (mask, value), best
                ), fit

            (mask, _), spread = jax.lax.scan(body, (prior, jnp.float32(-1)), keys)
            return mask, spread

        mask, spread = when_due(
            step == select_at, selected, (state.mask, state.fitness)
        )
        new = KStartsState(step, mask, evidence, spread, state.key)
        return zero_pruned(updates, mask, given), new

    return optax.GradientTransformationExtraArgs(init, update)


_FITNESS = {"magnitude": (True, False), "gradient": (False, True), "both": (True, True)}


def _no_evidence(params: Any) -> Any:
    """Returns zeros like the parameters; optax's placeholder is returned unchanged."""
    if not jax.tree.leaves(params):
        return params
    return jax.tree.map(
        lambda p: jnp.zeros_like(p, dtype=jnp.promote_types(p.dtype, jnp.float32)),
        params,
    )


def _gathered(evidence: Any, gradient: Any, mask: Mask) -> Any:
    return jax.tree.map(
        lambda e, x, m: e + jnp.where(m, jnp.abs(x.astype(e.dtype)), 0),
        evidence,
        gradient,
        mask,
    )


def _share(mask: Mask, sizes: Scores, flags: list[bool]) -> jax.Array:
    """Returns the share of each leaf's sum that a mask keeps, averaged over leaves.

    The share of a leaf whose sum is 0 is 0, whatever the mask.
    """
    shares = []
    for m, x, flag in zip(
        jax.tree.leaves(mask), jax.tree.leaves(sizes), flags, strict=True
    ):
        if flag:
            total = jnp.sum(x)
            kept = jnp.sum(jnp.where(m, x, jnp.zeros_like(x)))
            share = jnp.where(total > 0, kept / total, jnp.zeros_like(total))
            shares.append(share.astype(jnp.float32))
    return jnp.mean(jnp.stack(shares))
