"""K-starts: dense training picks the fittest of k random masks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Mask, Params, Prunable, Scores
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
    key: jax.Array,
    k: int,
    sparsity: Any,
    *,
    select_at: int | jax.Array,
    fitness: str = "both",
    mode: str = "shared",
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the fittest of k random masks: the last link of an optax chain.

    Training is dense, or through the union of the k masks, until update ``select_at``,
    which keeps the fittest and prunes by it; nothing is reset. A mask :math:`m` is as
    fit as the share of the weights' magnitude, and of the gradients' gathered so far,
    that it keeps,

    .. math:: F = \frac{1}{n} \sum_{l=1}^{n} \frac{\sum_{i \in l} m_i x_i}
                                                  {\sum_{i \in l} x_i},
              \qquad x = |\theta| \text{ or } \sum_{t} |g_t|,

    the mean over the n prunable leaves, and for "both" over the two. Our reading of a
    paper of which only the abstract was at hand: what is trained before the choice, the
    share leaf by leaf (else wide layers decide) and the sum over all updates from the
    first to ``select_at`` are choices. Two other readings need no link. In turns, every
    step trains through another mask: `forward_sparse` with
    ``layerwise_mask(random(keys[step % k])(params), sparsity)`` as both of its masks,
    ``keys = jax.random.split(key, k)``. Apart, k networks with a mask each are trained
    by one ``vmap`` over those keys. The masks keep equal counts, so with n weights
    their shares differ by some :math:`1 / \sqrt n` only: look at the ``fitness`` in the
    state before reading much into the winner.

    The masks are drawn from the key one after the other, and all but the best dropped:
    none is stored but the mask in use. A weight that is pruned already, or exactly 0
    in the parameters given, say by a link before this one, is the first to go in all of
    them. (What such a link prunes in the same update is not seen yet.) Inside
    ``shard_map`` on sharded parameters every shard chooses for itself: pass
    ``check_vma=False`` there, as ``fitness`` then differs from shard to shard.

    Args:
      key: a JAX random key. Its data is copied into the state, and that is what counts.
      k: how many masks, at least 1; one is a random static mask.
      sparsity: fraction removed of each prunable leaf, exactly, in [0, 1): a number, or
        a tree of numbers such as `erk` returns.
      select_at: the update that makes the choice, at least 1.
      fitness: "magnitude" of the weights that it is given, "gradient" or "both".
      mode: what is trained before the choice. "shared": all weights, dense. "union":
        those that any of the k masks keeps; the others are 0 from the first update on,
        from the first step on after ``apply_mask(params, get_mask(state, params))``.
      prunable: which leaves take part.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `KStartsState`. Gradients are
      taken from the extra argument ``grad`` of ``update``, a tree like the parameters:
      ``tx.update(grads, opt_state, params, grad=grads)``. Without it, it is the updates
      that reach the link that are summed (of Adam, say, nearly equal in size
      everywhere), and every update writes them to memory, also after the choice.

    Raises:
      ValueError: if ``sparsity`` is outside [0, 1), ``k`` or ``select_at`` less than 1,
        or ``fitness`` or ``mode`` none of those named; at update, without ``params``,
        or if ``grad`` does not match them.
      TypeError: at update, if a leaf is not floating.

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
            f"fitness is 'magnitude', 'gradient' or 'both'; got {fitness!r}. It says "
            "which share a random mask should keep most of."
        )
    if mode not in ("shared", "union"):
        raise ValueError(
            f"mode is 'shared' or 'union'; got {mode!r}. It says what is trained until "
            "the choice: all weights, or those that any of the masks keeps."
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
        updates: Any,
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
                # Of equals the first. One that is not a number has nothing to say for
                # it but that a choice must be made.
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
    """Zeros like the parameters, and where they lie; optax's placeholder as it is."""
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
    """How much of a leaf's total size a mask keeps, on the mean of the chosen leaves.

    A leaf without any size has no share to keep: 0, whatever the mask.
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
