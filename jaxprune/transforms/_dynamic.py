"""Sparse training whose mask moves: drop the smallest weights, grow others."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Mask, Params, Prunable
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
    drop_fraction: Any = 0.3,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains sparse, and moves weights to where the dense gradient is largest.

    Update k = 1, 2, ... is due when ``k % every == 0`` and ``k <= until``. Then, leaf
    by leaf, with n weights kept and f the drop fraction,

    .. math:: d = \min(\operatorname{round}(f n), \text{number pruned})

    kept weights of least :math:`|\theta|` are dropped, and of the weights pruned before
    the d of largest :math:`|\partial L / \partial \theta|` are grown. So the count of
    every leaf stays what it was, exactly, and a leaf that is kept whole stays whole. A
    grown weight starts at exactly 0, from the optimizer state that ``inner.init`` gives
    a 0, with a gradient of 0; it trains from the next update on. For the rest this is
    `sparse`: the optimizer sees the gradients of kept weights only, and on a due
    update, of those kept before and after. (Where something has grown in a leaf, its
    other weights that are exactly 0 wait until the next update too.)

    Weights are judged by the parameters and the dense gradient that the update is
    given, as in the paper, and these are read on due updates only. There the paper
    moves weights in place of the optimizer's step; here the step is taken as well, by
    the weights that stay. The paper may grow what it has just dropped; here that is
    gone until the next due update.

    A training step may be differentiated in forward mode (``jax.jvp``), but not in
    reverse: what due updates do stands in a while loop, so that others skip it.

    Args:
      inner: any optax transformation that keeps its state weight by weight.
      mask: a tree of bool like the parameters, ``True`` = kept; copied into the state.
        None starts from all True: for abstract initialisation, before a checkpoint is
        restored or `set_mask` is called.
      every: updates between mask updates, at least 2: a grown weight must train before
        it is judged.
      until: the last update that may move the mask; None is for ever. The paper stops
        at three quarters of the training.
      drop_fraction: fraction of a leaf's kept weights that move, in [0, 1): a number,
        or an optax schedule of k. It counts as the real number that the float32 is.
        A schedule is traced: what it gives outside [0, 1] counts as the nearer end.
        The paper's is ``optax.cosine_decay_schedule(0.3, until)``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseWrapperState`.

    Raises:
      ValueError: if ``every < 2``, ``until < 0`` or ``drop_fraction`` is a number
        outside [0, 1); at init, if the mask does not match the parameters or keeps
        nothing anywhere, or the optimizer's state is not like the parameters
        (adafactor, novograd, sm3); at update, without ``params``,
        with gradients that are not like them, or if the optimizer's state changes its
        tree (``optax.monitor``).
      TypeError: at init, if the mask is not bool or a parameter is not floating.

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

    def moved(given: Any, state: SparseWrapperState, mask: Mask) -> tuple[Mask, Mask]:
        params, gradient, step = given
        fraction = value_at(drop_fraction, step)
        return drop_and_grow(mask, mask, params, magnitude(gradient), fraction)

    def init(params: Params, inner_state: Any) -> SparseWrapperState:
        step = jnp.zeros([], jnp.int32)
        return SparseWrapperState(step, initial_mask(mask, params), inner_state)

    return moving("rigl", inner, init, due, moved)


def set_training(
    inner: optax.GradientTransformation,
    mask: Mask | None = None,
    *,
    key: jax.Array,
    every: int | jax.Array,
    until: int | jax.Array | None = None,
    drop_fraction: Any = 0.3,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains sparse, and moves the smallest weights to places drawn at random.

    SET, sparse evolutionary training: as `rigl`, but the weights grown on update k are
    those of largest ``random(jax.random.fold_in(key, k))``, so no dense gradient is
    needed. The paper drops the smallest positive and the largest negative weights in
    equal shares; here, as in RigL's comparison, those of least :math:`|\theta|`.

    Args:
      inner: any optax transformation that keeps its state weight by weight.
      mask: a tree of bool like the parameters, ``True`` = kept; copied into the state.
        None starts from all True.
      key: a JAX random key; copied into the state, so that seeds trained under ``vmap``
        may each have their own.
      every: updates between mask updates, at least 2.
      until: the last update that may move the mask; None is for ever.
      drop_fraction: fraction of a leaf's kept weights that move, in [0, 1): a number,
        or an optax schedule of k.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SetTrainingState`.

    Raises:
      ValueError: as `rigl`.
      TypeError: if ``key`` is not a random key; at init as `rigl`.

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

    def moved(given: Any, state: SetTrainingState, mask: Mask) -> tuple[Mask, Mask]:
        params, _, step = given
        scores = random(jax.random.fold_in(state.key, step))(params)
        return drop_and_grow(mask, mask, params, scores, value_at(drop_fraction, step))

    def init(params: Params, inner_state: Any) -> SetTrainingState:
        step, own = jnp.zeros([], jnp.int32), jnp.array(key, copy=True)
        return SetTrainingState(step, initial_mask(mask, params), inner_state, own)

    return moving("set_training", inner, init, due, moved)


def granet(
    inner: optax.GradientTransformation,
    sparsity: Any,
    *,
    every: int | jax.Array,
    until: int | jax.Array | None = None,
    drop_fraction: Any = 0.5,
    prunable: Prunable = matrices,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes while training, along a schedule, and regrows weights on the way.

    As `rigl`, from a dense start: a due update k first prunes inside the mask, by
    :math:`|\theta|` and one threshold for all leaves, to ``sparsity(k)``, as `gradual`
    does. Then, leaf by leaf, ``round(drop_fraction(k) * kept)`` more are dropped, and
    as many grown by :math:`|\partial L / \partial \theta|` among the weights that were
    pruned before k; where these are fewer, as many as there are. So the prunable
    weights that remain number what ``sparsity(k)`` says, exactly. A sparsity that falls
    brings nothing back.

    Args:
      inner: any optax transformation that keeps its state weight by weight.
      sparsity: fraction of prunable weights removed, in [0, 1): a number, or an optax
        schedule of the update's number k. The paper's is ``optax.polynomial_schedule(0,
        s, power=3, transition_steps=until)``. A traced one counts as in `gradual`.
      every: updates between mask updates, at least 2.
      until: the last update that may move the mask; None is for ever.
      drop_fraction: fraction of a leaf's kept weights that move, in [0, 1): a number,
        or an optax schedule of k. The paper's is ``optax.cosine_decay_schedule(0.5,
        until, 0.01)``.
      prunable: which leaves take part.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a `SparseWrapperState`.

    Raises:
      ValueError: if ``sparsity`` is a number outside [0, 1), and as `rigl`.
      TypeError: at init, if a parameter is not floating.

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

    def moved(given: Any, state: SparseWrapperState, mask: Mask) -> tuple[Mask, Mask]:
        params, gradient, step = given
        pruned = global_mask(
            magnitude(params), value_at(sparsity, step), prunable=prunable, prior=mask
        )
        fraction = value_at(drop_fraction, step)
        return drop_and_grow(mask, pruned, params, magnitude(gradient), fraction)

    def init(params: Params, inner_state: Any) -> SparseWrapperState:
        step = jnp.zeros([], jnp.int32)
        return SparseWrapperState(step, initial_mask(None, params), inner_state)

    return moving("granet", inner, init, due, moved)
