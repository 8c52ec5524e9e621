"""Allocation: the sparsity of each leaf for a given overall sparsity."""

import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxprune._types import Params, Prunable, Real
from jaxprune.core import _checks
from jaxprune.core._prunable import matrices, select_prunable


def erk(params: Params, sparsity: Real, *, prunable: Prunable = matrices) -> Any:
    r"""Allocates sparsity so that small leaves stay denser (Erdős–Rényi kernel).

    A leaf of shape :math:`(d_1, \dots, d_k)`, spatial dimensions included, gets the
    density

    .. math:: \rho_l
              = \min\left(1, \varepsilon \, \frac{\sum_j d_j}{\prod_j d_j}\right),

    where :math:`\varepsilon` is chosen such that the overall density is
    ``1 - sparsity``. Leaves that would exceed density 1 are dense, and
    :math:`\varepsilon` is solved again for the remaining ones.

    Args:
      params: a tree of arrays or ``jax.ShapeDtypeStruct``; only shapes are read.
      sparsity: fraction of all prunable weights removed, a Python number in [0, 1).
      prunable: which leaves to prune.

    Returns:
      The sparsity of each leaf, a tree of Python floats like ``params`` for
      `layerwise_mask`; 0 for leaves that are not prunable. Because each leaf's count is
      rounded, the total may be off by half a weight per leaf.

    Raises:
      ValueError: if ``sparsity`` is not in [0, 1), or nothing is prunable.
      TypeError: if ``sparsity`` is traced.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"big": jnp.zeros((100, 100)), "small": jnp.zeros((10, 10))}
      >>> {k: round(v, 3) for k, v in jp.erk(params, 0.8).items()}
      {'big': 0.808, 'small': 0.0}

    References:
      Evci et al., `Rigging the Lottery: Making All Tickets Winners
      <https://arxiv.org/abs/1911.11134>`_, ICML 2020, Section 3, item 1.
    """
    if isinstance(sparsity, Tracer):
        raise TypeError(
            "erk needs a sparsity that is known while tracing, a Python number in "
            "[0, 1); got a traced value. Compute the allocation outside jit."
        )
    _checks.check_sparsity(sparsity)
    flags = select_prunable(params, prunable)
    leaves, structure = jax.tree.flatten(params)
    shapes = [
        np.shape(leaf) if flag else None
        for leaf, flag in zip(leaves, flags, strict=True)
    ]
    densities = _erk_densities([s for s in shapes if s is not None], float(sparsity))
    remaining = iter(densities)
    return jax.tree.unflatten(
        structure, [1.0 - next(remaining) if flag else 0.0 for flag in flags]
    )


def _erk_densities(shapes: list[tuple[int, ...]], sparsity: Real) -> list[float]:
    sizes = [math.prod(shape) for shape in shapes]
    budget = (1.0 - sparsity) * sum(sizes)
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(shapes)) if i not in dense and sizes[i]]
        room = budget - sum(sizes[i] for i in dense)
        epsilon = room / max(sum(sum(shapes[i]) for i in free), 1)
        full = {i for i in free if epsilon * sum(shapes[i]) >= sizes[i]}
        if not full:
            break
        dense |= full
    return [
        1.0 if i in dense or not sizes[i] else epsilon * sum(shape) / sizes[i]
        for i, shape in enumerate(shapes)
    ]
