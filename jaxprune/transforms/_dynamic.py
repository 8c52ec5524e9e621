"""Dynamic sparse training: drop the smallest weights and grow new ones."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Key, Mask, Params, Prunable
from jaxprune.core import _checks
from jaxprune.core._prunable import matrices
from jaxprune.masks._threshold import global_mask
from jaxprune.scores._from_loss import magnitude, random
from jaxprune.transforms._drop_and_grow import (
    check_drop_fraction,
    drop_and_grow,
    moving,
)
from jaxprune.transforms._keep_sparse import value_at
from jaxprune.transforms._state import initial_mask
from jaxprune.transforms._states import SetTrainingState, SparseWrapperState
from jaxprune.transforms._when_due import due_updates


def rigl(
    inner: optax.GradientTransformation,
    mask: Mask | None = None,
    *,
    every: int | jax.Array,
    until: int | jax.Array | None = None,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains a sparse network and grows weights where the dense gradient is largest.

    Update k = 1, 2, ... moves the mask when ``k % every == 0`` and ``k <= until``. In
    each leaf, with n kept weights and drop fraction f, it drops the

    .. math:: d = \min(\operatorname{round}(f n), \text{number pruned})

    kept weights of smallest :math:`|\theta|`, and grows the d pruned weights of largest
    :math:`|\partial L / \partial \theta|`. So every leaf keeps exactly the same number
    of weights, and a dense leaf stays dense. A grown weight starts at exactly 0, with
    the optimizer state that ``inner.init`` gives a 0, and is trained from the next
    update on. Otherwise this is `sparse`: the optimizer sees the gradients of kept
    weights only; when the mask moves, of those kept before and after. (In leaves where
    something grew, all kept weights that are exactly 0 wait for the next update.)

    The magnitudes are those before the update, and the gradients those passed to it, as
    in the paper. Two things differ. When the mask moves, the paper skips the
    optimizer's step; here the weights that stay take it. The paper may grow weights
    that it has just dropped; here they cannot grow before the next mask update.

    A training step can be differentiated in forward mode (``jax.jvp``) but not in
    reverse mode, because mask updates run in a ``while_loop``.

    Args:
      inner: an optax transformation whose state is like the parameters.
      mask: a tree of bool like the parameters, ``True`` = kept. It is copied into the
        state. None starts with all True, as in `keep_sparse`.
      every: updates between mask updates, at least 2, as grown weights must be trained
        before they are compared.
      until: the last update that may move the mask; None for no limit. The paper stops
        at three quarters of the training.
      drop_fraction: fraction of a leaf's kept weights that move, in [0, 1): a number,
        or an optax schedule of k, whose values are clipped to [0, 1]. The paper uses
        ``optax.cosine_decay_schedule(0.3, until)``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseWrapperState`.

    Raises:
      ValueError: if ``every < 2``, ``until < 0``, ``until`` comes before the first mask
        update, or ``drop_fraction`` is a number outside [0, 1); at init, if the mask
        does not match the parameters or keeps no weight at all, or the optimizer's
        state is not like the parameters (adafactor, novograd, sm3); at update, if
        ``params`` is missing, the gradients do not match it, or the optimizer's state
        changes its tree structure (``optax.monitor``).
      TypeError: if ``inner`` is not an optax transformation; at init, if the mask is
        not bool or a parameter is not floating.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([[4.0, 0.1, 0.0, 0.0]])}
      >>> mask = {"w": jnp.array([[True, True, False, False]])}
      >>> tx = jp.rigl(optax.adam(0.1), mask, every=2, until=100, drop_fraction=0.5)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     gradient = {"w": jnp.array([[1.0, 1.0, 2.0, -3.0]])}
      ...     updates, state = tx.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> optax.tree.get(state, "mask")
      {'w': Array([[ True, False, False,  True]], dtype=bool)}

    References:
      Evci et al., `Rigging the Lottery: Making All Tickets Winners
      <https://arxiv.org/abs/1911.11134>`_, ICML 2020, Section 3 and Algorithm 1.
    """
    due = due_updates(every, until, least=2)
    check_drop_fraction(drop_fraction)

    def moved(
        given: Any, state: SparseWrapperState, mask: Mask
    ) -> tuple[Mask, Mask, Any]:
        params, gradient, step = given
        fraction = value_at(drop_fraction, step)
        return drop_and_grow(mask, mask, params, gradient, fraction)

    def init(params: Params, inner_state: Any) -> SparseWrapperState:
        step = jnp.zeros([], jnp.int32)
        return SparseWrapperState(step, initial_mask(mask, params), inner_state)

    return moving("rigl", inner, init, due, moved)


def set_training(
    inner: optax.GradientTransformation,
    mask: Mask | None = None,
    *,
    key: Key,
    every: int | jax.Array,
    until: int | jax.Array | None = None,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains a sparse network, drops the smallest weights and grows random ones (SET).

    Sparse evolutionary training is `rigl`, except that update k grows the weights of
    largest ``random(jax.random.fold_in(key, k))``, so it needs no dense gradient. The
    paper drops the smallest positive and the largest negative weights in equal shares;
    we drop those of smallest :math:`|\theta|`, as the RigL paper does for comparison.

    Args:
      inner: an optax transformation whose state is like the parameters.
      mask: a tree of bool like the parameters, ``True`` = kept. It is copied into the
        state. None starts with all True, as in `keep_sparse`.
      key: a JAX random key. It is copied into the state, so that each seed of a
        ``vmap`` can have its own.
      every: updates between mask updates, at least 2.
      until: the last update that may move the mask; None for no limit.
      drop_fraction: fraction of a leaf's kept weights that move, in [0, 1): a number,
        or an optax schedule of k, whose values are clipped to [0, 1].

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SetTrainingState`.

    Raises:
      ValueError: for the reasons of `rigl`.
      TypeError: if ``key`` is not a random key, and for the reasons of `rigl`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.arange(8.0).reshape(2, 4)}
      >>> mask = jp.layerwise_mask(jp.magnitude(params), 0.5)
      >>> key = jax.random.key(0)
      >>> tx = jp.set_training(optax.sgd(0.1), mask, key=key, every=2, until=100)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update({"w": jnp.ones((2, 4))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> int(jnp.sum(optax.tree.get(state, "mask")["w"]))
      4

    References:
      Mocanu et al., `Scalable training of artificial neural networks with adaptive
      sparse connectivity <https://arxiv.org/abs/1707.04780>`_, 2018, Algorithm 2.
    """
    due = due_updates(every, until, least=2)
    check_drop_fraction(drop_fraction)
    _checks.check_key(key)

    def moved(
        given: Any, state: SetTrainingState, mask: Mask
    ) -> tuple[Mask, Mask, Any]:
        params, _, step = given
        scores = random(jax.random.fold_in(state.key, step))(params)
        return drop_and_grow(mask, mask, params, scores, value_at(drop_fraction, step))

    def init(params: Params, inner_state: Any) -> SetTrainingState:
        step, own = jnp.zeros([], jnp.int32), jnp.array(key, copy=True)
        return SetTrainingState(step, initial_mask(mask, params), inner_state, own)

    return moving("set_training", inner, init, due, moved)


def granet(
    inner: optax.GradientTransformation,
    sparsity: optax.ScalarOrSchedule,
    *,
    every: int | jax.Array,
    until: int | jax.Array | None = None,
    drop_fraction: optax.ScalarOrSchedule = 0.5,
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes along a schedule during training, and regrows weights (GraNet).

    It starts dense. When the mask is updated, it is first pruned to ``sparsity(k)`` by
    :math:`|\theta|`, with one threshold for all leaves, as in `gradual`. Then weights
    move as in `rigl`: each leaf drops ``round(drop_fraction(k) * kept)`` more weights,
    at most as many as were pruned before update k, and grows the same number of those
    by :math:`|\partial L / \partial \theta|`. So exactly the fraction ``sparsity(k)``
    of all prunable weights is pruned. If the schedule decreases, no weights come back.

    Args:
      inner: an optax transformation whose state is like the parameters.
      sparsity: fraction of prunable weights removed, in [0, 1): a number, or an optax
        schedule of the number k of the update, whose values are clipped to [0, 1]. The
        paper uses ``optax.polynomial_schedule(0, s, power=3, transition_steps=until)``.
      every: updates between mask updates, at least 2. In a training run shorter than
        this, nothing is pruned.
      until: the last update that may move the mask; None for no limit.
      drop_fraction: fraction of a leaf's kept weights that move, in [0, 1): a number,
        or an optax schedule of k, whose values are clipped to [0, 1]. The paper uses
        ``optax.cosine_decay_schedule(0.5, until, 0.01)``.
      prunable: which leaves to prune; the remaining leaves are kept whole.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseWrapperState`.

    Raises:
      ValueError: if ``sparsity`` is a number outside [0, 1), and for the reasons of
        `rigl`.
      TypeError: for the reasons of `rigl`.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
      >>> tx = jp.granet(optax.sgd(0.1), 0.5, every=2, until=100)
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...     updates, state = tx.update({"w": jnp.ones((2, 4))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> optax.tree.get(state, "mask")
      {'w': Array([[ True,  True, False, False],
             [False, False,  True,  True]], dtype=bool)}

    References:
      Liu et al., `Sparse Training via Boosting Pruning Plasticity with
      Neuroregeneration <https://arxiv.org/abs/2106.10404>`_, NeurIPS 2021, Section 4.
    """
    if not callable(sparsity):
        _checks.check_sparsity(sparsity)
    due = due_updates(every, until, least=2)
    check_drop_fraction(drop_fraction)

    def moved(
        given: Any, state: SparseWrapperState, mask: Mask
    ) -> tuple[Mask, Mask, Any]:
        params, gradient, step = given
        pruned = global_mask(
            magnitude(params), value_at(sparsity, step), prunable=prunable, prior=mask
        )
        fraction = value_at(drop_fraction, step)
        return drop_and_grow(mask, pruned, params, gradient, fraction)

    def init(params: Params, inner_state: Any) -> SparseWrapperState:
        step = jnp.zeros([], jnp.int32)
        return SparseWrapperState(step, initial_mask(None, params), inner_state)

    return moving("granet", inner, init, due, moved)
