"""Score functions ``score(params, *batch)``, built from a loss like ``jax.grad``."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType

from jaxprune import measures
from jaxprune._types import AxisName, Key, LossFn, Params, ScoreFn, Scores
from jaxprune.core import _checks
from jaxprune.core._cut import entries
from jaxprune.core._dtypes import upcast_half
from jaxprune.core._placement import large_or_shared, shard_like
from jaxprune.scores._flow import gradient_flow


def magnitude(params: Params, *_: Any) -> Scores:
    r"""Scores each weight by its magnitude, :math:`s_i = |\theta_i|`.

    Args:
      params: any pytree of floating arrays.
      *_: ignored, so that it can replace a score function that needs data.

    Returns:
      Non-negative scores like ``params``, float32 or wider.

    Raises:
      TypeError: if a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.magnitude({"w": jnp.array([1.0, -2.0])})
      {'w': Array([1., 2.], dtype=float32)}

    References:
      Han et al., `Learning both Weights and Connections for Efficient Neural Networks
      <https://arxiv.org/abs/1506.02626>`_, NeurIPS 2015, Section 3.
    """
    _checks.check_floating(params, "params")
    return jax.tree.map(jnp.abs, upcast_half(params))


def random(key: Key) -> ScoreFn:
    r"""Builds a score of uniform noise, :math:`s_i \sim U[0, 1)`: the baseline.

    Args:
      key: a JAX random key. The same key gives the same scores.

    Returns:
      A score function ``score(params, *_)``. Its scores are in [0, 1), like ``params``,
      float32 or wider.

    Raises:
      TypeError: when called, if a leaf is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> scores = jp.random(jax.random.key(0))({"w": jnp.zeros((2, 3))})
      >>> scores["w"].shape
      (2, 3)
    """
    _checks.check_key(key)

    def score(params: Params, *_: Any) -> Scores:
        _checks.check_floating(params, "params")
        leaves, structure = jax.tree.flatten(params)
        keys = entries(jax.random.split(key, len(leaves)))
        return jax.tree.unflatten(
            structure, [_uniform_like(k, p) for k, p in zip(keys, leaves, strict=True)]
        )

    return score


def snip(loss_fn: LossFn, *, axis_name: AxisName | None = None) -> ScoreFn:
    r"""Builds the SNIP score: how much removing a weight changes the loss.

    With weights :math:`\theta` and loss :math:`L`, weight i scores

    .. math:: s_i = \left| \theta_i \, \partial L / \partial \theta_i \right|,

    the change to first order, in units of the loss. The paper divides by
    :math:`\sum_i s_i`; we do not, as it does not change the ranking. Lubana & Dick call
    this score loss preservation.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a scalar averaged over the batch.
      axis_name: inside ``pmap`` or ``shard_map``, the axis to average gradients over.

    Returns:
      A score function ``score(params, *batch)``. Its scores are non-negative, with the
      structure, shapes and shardings of ``params``, float32 or wider.

    Raises:
      TypeError: when called, if the loss is not a scalar or a leaf is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def loss_fn(params, x):
      ...     return jnp.sum(x @ params["w"])
      >>> score = jax.jit(jp.snip(loss_fn))
      >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.0]])}
      >>> score(params, jnp.array([1.0, 2.0]))["w"]
      Array([[1., 2.],
             [6., 0.]], dtype=float32)

    References:
      Lee et al., `SNIP: Single-shot Network Pruning based on Connection Sensitivity
      <https://arxiv.org/abs/1810.02340>`_, ICLR 2019, Section 4.1.
    """
    return from_measure(measures.loss_preservation, loss_fn, 1, axis_name)


def biased_loss(loss_fn: LossFn, *, axis_name: AxisName | None = None) -> ScoreFn:
    r"""Builds the score of loss preservation, weighted by magnitude.

    .. math:: s_i = |\theta_i| \, |\theta_i g_i| = \theta_i^2 \, |g_i|.

    It favors large weights. `measures.biased_loss` can use the distance from the
    initial weights instead of the magnitude.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a scalar averaged over the batch.
      axis_name: inside ``pmap`` or ``shard_map``, the axis to average gradients over.

    Returns:
      A score function ``score(params, *batch)``. Its scores are non-negative, like
      ``params``, float32 or wider.

    Raises:
      TypeError: when called, if the loss is not a scalar or a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> score = jp.biased_loss(lambda p, x: jnp.sum(p * x))
      >>> score(jnp.array([3.0, -1.0]), jnp.array([2.0, 5.0]))
      Array([18.,  5.], dtype=float32)

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021.
    """
    return from_measure(measures.biased_loss, loss_fn, 1, axis_name)


def grasp(loss_fn: LossFn, *, axis_name: AxisName | None = None) -> ScoreFn:
    r"""Builds the GraSP score: how much a weight adds to the gradient norm. Signed.

    .. math:: s_i = \theta_i \, (H g)_i.

    Removing weight i changes :math:`|g|^2` by about :math:`-2 s_i`, so removing the
    smallest scores raises the gradient norm most. The paper's score is the negative of
    this one, and it removes the largest. A temperature (200 in the authors' code)
    belongs in the loss.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a scalar averaged over the batch.
      axis_name: inside ``pmap`` or ``shard_map``, the axis to average g and Hg over.

    Returns:
      A score function ``score(params, *batch)``. Its scores are signed, like
      ``params``, float32 or wider.

    Raises:
      TypeError: when called, if the loss is not a scalar or a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> score = jp.grasp(lambda p: 0.5 * jnp.sum(jnp.array([2.0, -1.0]) * p**2))
      >>> score(jnp.array([1.0, 3.0]))  # θ h² θ
      Array([4., 9.], dtype=float32)

    References:
      Wang et al., `Picking Winning Tickets Before Training by Preserving Gradient Flow
      <https://arxiv.org/abs/2002.07376>`_, ICLR 2020, Section 4.
    """
    return from_measure(measures.grasp, loss_fn, 2, axis_name)


def gradient_preservation(
    loss_fn: LossFn, *, axis_name: AxisName | None = None
) -> ScoreFn:
    r"""Builds the score of gradient preservation: the change of the gradient norm.

    .. math:: s_i = \left| \theta_i \, (H g)_i \right|

    is half the change of :math:`|g|^2` to first order if weight i is removed. GraSP
    raises the gradient norm; this score preserves it.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a scalar averaged over the batch.
      axis_name: inside ``pmap`` or ``shard_map``, the axis to average g and Hg over.

    Returns:
      A score function ``score(params, *batch)``. Its scores are non-negative, like
      ``params``, float32 or wider.

    Raises:
      TypeError: when called, if the loss is not a scalar or a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> score = jp.gradient_preservation(lambda p: jnp.sum(-(p**2)))
      >>> score(jnp.array([1.0, -2.0]))
      Array([ 4., 16.], dtype=float32)

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021.
    """
    return from_measure(measures.gradient_preservation, loss_fn, 2, axis_name)


def fisher(loss_fn: LossFn, *, axis_name: AxisName | None = None) -> ScoreFn:
    r"""Builds the Fisher score: how much removing a weight costs near a minimum.

    .. math:: s_i = \theta_i^2 \, g_i^2

    squares the gradient of the whole batch, where the paper averages the squares of
    single examples. For an average over minibatches use `measures.fisher` with
    `mean_flow`.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> loss``, a scalar averaged over the batch.
      axis_name: inside ``pmap`` or ``shard_map``, the axis to average gradients over,
        before they are squared.

    Returns:
      A score function ``score(params, *batch)``. Its scores are non-negative, like
      ``params``, float32 or wider.

    Raises:
      TypeError: when called, if the loss is not a scalar or a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> score = jp.fisher(lambda p, x: jnp.sum(p * x))
      >>> score(jnp.array([3.0, -1.0]), jnp.array([2.0, 5.0]))
      Array([36., 25.], dtype=float32)

    References:
      Theis et al., `Faster gaze prediction with dense networks and Fisher pruning
      <https://arxiv.org/abs/1801.05787>`_, 2018, Section 2.
    """
    return from_measure(measures.fisher, loss_fn, 1, axis_name)


def from_measure(
    measure: measures.Measure, loss_fn: LossFn, order: int, axis_name: AxisName | None
) -> ScoreFn:
    """Builds the score function that measures the flow of a loss."""
    flow_fn = gradient_flow(loss_fn, order=order, axis_name=axis_name)

    def score(params: Params, *batch: Any) -> Scores:
        return measure(flow_fn(params, *batch))

    return score


def _uniform_like(key: jax.Array, leaf: Any) -> jax.Array:
    dtype = upcast_half(jnp.zeros([], leaf.dtype)).dtype
    if not isinstance(leaf, Tracer):
        return shard_like(jax.random.uniform(key, jnp.shape(leaf), dtype), leaf)
    sharding = jax.typeof(leaf).sharding  # Told by the type on Explicit meshes only.
    if sharding.mesh.empty and not large_or_shared(leaf):
        # Drawn flat, so that leaves of one size share the kernels.
        flat = jax.random.uniform(key, [leaf.size], dtype)
        return jax.lax.optimization_barrier(flat).reshape(leaf.shape)
    known = sharding if AxisType.Explicit in sharding.mesh.axis_types else None
    noise = jax.random.uniform(key, leaf.shape, dtype, out_sharding=known)
    # Make the noise depend on the leaf so that it inherits the leaf's sharding.
    return jnp.where(leaf == leaf, noise, noise)
