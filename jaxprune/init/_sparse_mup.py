"""Sparse µP: initial weights and learning rates for any width and density."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxprune._types import Numeric, Params, Prunable, Real
from jaxprune.core import _checks
from jaxprune.core._prunable import select_prunable
from jaxprune.masks._threshold import broadcast_sparsity
from jaxprune.transforms._state import narrowed


class SparseMup(NamedTuple):
    """The multipliers of `sparse_mup`.

    Attributes:
      init: multiplies the initial weights; a tree of Python floats, or of arrays if the
        sparsity is an array.
      learning_rate: multiplies Adam's step size; a tree of the same kind.
      output: multiplies the outputs of the last layer; a Python float.
    """

    init: Any
    learning_rate: Any
    output: float


def sparse_mup(
    params: Params,
    sparsity: PyTree[Numeric],
    *,
    hidden: Prunable,
    width: Real = 1.0,
    base_sparsity: Real = 0.0,
) -> SparseMup:
    r"""Transfers hyperparameters to another width and density (sparse µP, SµPar).

    A search on a narrow, dense base network finds an initial variance
    :math:`\sigma^2` and a learning rate :math:`\eta` for Adam. With
    :math:`m_d` = width / base width and :math:`m_\rho` = density / base density, a
    hidden leaf should have

    .. math:: \mathrm{Var} = \frac{\sigma^2}{m_d \, m_\rho}, \qquad
       \eta_l = \frac{\eta}{m_d \, m_\rho},

    so that neither its outputs nor their change per step depends on width or density.
    Embeddings, biases, norms and the output layer stay dense and keep :math:`\sigma`
    and :math:`\eta`; the outputs of the last layer are divided by :math:`m_d`. All of
    this is as in µP. It assumes a random mask on random weights: a mask chosen by
    magnitude changes their variance.

    Two more rules of µP and of the authors' code belong in the model: divide attention
    logits by the head size instead of its square root, and scale the initial
    projections into a residual stream of l blocks by :math:`1 / \sqrt{2 l}`.

    Args:
      params: a tree of arrays or ``jax.ShapeDtypeStruct``; only paths, shapes and
        dtypes are read.
      sparsity: fraction of each hidden leaf removed, in [0, 1): a number, which may be
        traced, or a tree of numbers, such as `erk` returns.
      hidden: which leaves are hidden weights, whose inputs and outputs both grow with
        the width, such as ``jp.by_path("layers/[12]/kernel")``. There is no default,
        because shapes do not tell hidden layers from the first and the last.
      width: :math:`m_d`, the width divided by that of the base network.
      base_sparsity: the sparsity of the base network, in [0, 1).

    Returns:
      A `SparseMup`. Multiply the initial weights by ``init``, which is
      :math:`(m_d m_\rho)^{-1/2}` for hidden leaves and else 1. Pass ``learning_rate``,
      which is :math:`(m_d m_\rho)^{-1}` or 1, to `scale_leaves`. Multiply the logits by
      ``output``, which is :math:`1 / m_d`.

    Raises:
      ValueError: if a sparsity is not in [0, 1), its tree does not match, ``width`` is
        not positive, or ``hidden`` selects nothing.
      TypeError: if a sparsity is not a number, or ``base_sparsity`` is traced.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"in": jnp.ones((4, 8)), "mid": jnp.ones((8, 8))}
      >>> mup = jp.sparse_mup(params, 0.75, hidden=jp.by_path("mid"))
      >>> mup.init
      {'in': 1.0, 'mid': 2.0}
      >>> mup.learning_rate
      {'in': 1.0, 'mid': 4.0}
      >>> mask = jp.layerwise_mask(jp.random(jax.random.key(0))(params), 0.75,
      ...                          prunable=jp.by_path("mid"))
      >>> params = jp.apply_mask(jax.tree.map(jnp.multiply, params, mup.init), mask)
      >>> tx = optax.chain(optax.adam(1e-3), jp.scale_leaves(mup.learning_rate),
      ...                  jp.keep_sparse(mask))

    References:
      Dey et al., `Sparse maximal update parameterization: A holistic approach to sparse
      training dynamics <https://arxiv.org/abs/2405.15743>`_, NeurIPS 2024, Table 1.
    """
    _checks.check_fraction(
        base_sparsity, "base_sparsity", "of weights that the base network removes"
    )
    if not _checks.is_python_number(width) or not 0 < width < math.inf:
        raise ValueError(
            "width must be a positive number, the width divided by the base width; got "
            f"{width!r}."
        )
    base = _checks.static_sparsity(base_sparsity, "sparse_mup", "base_sparsity")
    flags = select_prunable(params, hidden)
    targets = iter(broadcast_sparsity(sparsity, params, flags))
    factors = []
    for flag in flags:
        factor = 1.0
        if flag:
            factor = width * (1.0 - next(targets)) / (1.0 - base)
            factor = float(factor) if _checks.is_python_number(factor) else factor
        factors.append(factor)
    restore = jax.tree.structure(params).unflatten
    return SparseMup(
        restore([factor**-0.5 for factor in factors]),
        restore([1.0 / factor for factor in factors]),
        1.0 / width,
    )


def scale_leaves(factors: PyTree[Numeric]) -> optax.GradientTransformation:
    r"""Scales the updates of each leaf by its own factor.

    .. math:: u_l \mapsto c_l \, u_l

    After ``optax.adam(learning_rate)`` in a chain, this gives each leaf its own
    learning rate, with a single optimizer state and no partition. After ``optax.adamw``
    it also scales the weight decay, like the parameter groups of PyTorch.

    Args:
      factors: a tree of numbers with the structure of the parameters.

    Returns:
      A stateless ``optax.GradientTransformation``. Updates keep their dtypes. Inside
      ``optax.masked`` and ``optax.partition`` it scales the leaves that are visible.

    Raises:
      TypeError: if a factor is not one number.
      ValueError: at update, if the updates do not have the structure of ``factors``.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = optax.chain(optax.sgd(1.0), jp.scale_leaves({"a": 1.0, "b": 0.5}))
      >>> grads = {"a": jnp.ones(1), "b": jnp.ones(1)}
      >>> tx.update(grads, tx.init(grads))[0]
      {'a': Array([-1.], dtype=float32), 'b': Array([-0.5], dtype=float32)}
    """
    for path, factor in jax.tree_util.tree_leaves_with_path(factors):
        array = isinstance(factor, jax.Array | np.ndarray) and factor.ndim == 0
        if not (array or _checks.is_python_number(factor)):
            raise TypeError(
                f"factors: the leaf {_checks.path_str(path)} must be a number; got "
                f"{_checks.described(factor)}."
            )

    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        try:
            seen = narrowed(factors, updates)
            return jax.tree.map(lambda u, c: u * jnp.asarray(c, u.dtype), updates, seen)
        except ValueError as error:
            raise ValueError(
                "factors must have one number per leaf of the parameters; got "
                f"{jax.tree.structure(factors)} for {jax.tree.structure(updates)}."
            ) from error

    return optax.stateless(scaled)
