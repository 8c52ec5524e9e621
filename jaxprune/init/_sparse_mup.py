"""Sparse µP: initialisation and learning rates that fit any width and density."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune._types import Params, Prunable, Real
from jaxprune.core import _checks
from jaxprune.core._prunable import select_prunable
from jaxprune.masks._threshold import broadcast_sparsity
from jaxprune.transforms._state import narrowed


class SparseMup(NamedTuple):
    """The multipliers of `sparse_mup`.

    Attributes:
      init: for the standard deviation of the initial weights, a tree of Python floats;
        of arrays where the sparsity is one.
      learning_rate: for Adam's step, likewise.
      output: for what the output layer gives, one number.
    """

    init: Any
    learning_rate: Any
    output: float


def sparse_mup(
    params: Params,
    sparsity: Any,
    *,
    hidden: Prunable,
    width: Real = 1.0,
    base_sparsity: Real = 0.0,
) -> SparseMup:
    r"""Says how to rescale a tuned network for another width and density (SµPar).

    A hyper-parameter search on a narrow, dense network finds an initial variance
    :math:`\sigma^2` and a learning rate :math:`\eta` for Adam. With
    :math:`m_d` = width / base width and :math:`m_\rho` = density / base density, a
    hidden leaf should have

    .. math:: \mathrm{Var} = \frac{\sigma^2}{m_d \, m_\rho}, \qquad
       \eta_l = \frac{\eta}{m_d \, m_\rho},

    so that neither its outputs nor their change in a step depend on width or density.
    All other leaves keep :math:`\sigma` and :math:`\eta`: embeddings, biases, norms and
    the output layer, whose outputs are divided by :math:`m_d` instead, all as in µP.
    They are dense. The weights are to be random where the mask is (a static random mask
    on fresh weights): a mask that looks at magnitudes changes their variance itself.

    Two more rules of µP and of the authors' code lie in the model: attention logits are
    divided by the head's size, not its root, and the projections that write to a
    residual stream of l blocks start smaller by :math:`\sqrt{2 l}`.

    Args:
      params: a tree of arrays or ``jax.ShapeDtypeStruct``; only paths, shapes and
        dtypes are read.
      sparsity: fraction removed of every hidden leaf, in [0, 1): a number, which may
        be traced, or a tree of numbers, such as `erk` returns.
      hidden: which leaves are hidden weights, those whose inputs and outputs both grow
        with the width: ``jp.by_path("layers/[12]/kernel")``. There is no default, as
        shapes do not tell a hidden layer from the first and the last.
      width: :math:`m_d`, the width over that of the tuned network.
      base_sparsity: the tuned network's sparsity, in [0, 1).

    Returns:
      A `SparseMup`. ``init`` is 1 or :math:`(m_d m_\rho)^{-1/2}` for every leaf:
      multiply the initial weights by it. ``learning_rate`` is 1 or
      :math:`(m_d m_\rho)^{-1}`: give it to `scale_leaves`. ``output`` is
      :math:`1 / m_d`: multiply the logits by it.

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
    _checks.check_fraction(base_sparsity, "base_sparsity", "that the base removes")
    if not _checks.is_python_number(width) or not 0 < width < math.inf:
        raise ValueError(
            f"width must be a positive number, the width over the base width; got "
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


def scale_leaves(factors: Any) -> optax.GradientTransformation:
    r"""Scales the updates of every leaf by a factor of its own: an optax link.

    .. math:: u_l \mapsto c_l \, u_l

    After ``optax.adam(learning_rate)`` it is a learning rate a leaf, without a
    partition and with one optimizer state. After ``optax.adamw`` it scales the decay as
    well, as parameter groups in PyTorch do.

    Args:
      factors: a tree of numbers with the structure of the parameters.

    Returns:
      A stateless ``optax.GradientTransformation``; updates keep their dtypes. Inside
      ``optax.masked`` and ``optax.partition`` it scales the leaves that it sees.

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
                f"factors: the leaf {_checks.path_str(path)} must be one number, the "
                f"scale of its leaf; got {_checks.described(factor)}."
            )

    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        try:
            seen = narrowed(factors, updates)
            return jax.tree.map(lambda u, c: u * jnp.asarray(c, u.dtype), updates, seen)
        except ValueError as error:
            raise ValueError(
                "factors must have one number for every leaf of the parameters; got "
                f"{jax.tree.structure(factors)} for {jax.tree.structure(updates)}."
            ) from error

    return optax.stateless(scaled)
