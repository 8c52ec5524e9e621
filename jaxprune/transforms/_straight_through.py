"""Straight-through estimators: dense weights trained through a sparse forward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Mask, Params
from jaxprune.core import _checks
from jaxprune.masks._threshold import apply_mask


def forward_sparse(
    fn: Callable[..., Any],
    mask_fn: Callable[[Params], Mask],
    *,
    decay: float = 0.0,
    backward: Callable[[Params], Mask] | None = None,
) -> Callable[..., Any]:
    r"""Calls a function with pruned parameters, and passes gradients to the dense ones.

    The forward pass uses :math:`\tilde\theta = m \odot \theta`, where ``mask_fn``
    computes the mask m from the current parameters. The backward pass ignores the mask,
    so pruned weights get gradients too:

    .. math:: \frac{\partial L}{\partial \theta} :=
       \frac{\partial L}{\partial \tilde\theta} + \lambda (1 - m) \odot \theta .

    A pruned weight returns as soon as it is large enough. The parameters stay dense;
    the sparse model at the end is ``apply_mask(params, mask_fn(params))``. Do not add a
    link such as `keep_sparse` to the optimizer: it would keep pruned weights at 0.

    With ``layerwise_mask`` or ``global_mask`` of the magnitudes this is the magnitude
    straight-through estimator. With ``n_m_mask`` and ``decay=2e-4`` it is SR-STE. With
    two masks of magnitudes, the larger one for ``backward``, it is Top-KAST without its
    penalty.

    Args:
      fn: ``fn(params, *args, **kwargs)``, a loss or a model with any result.
      mask_fn: ``mask_fn(params) -> mask``. It is called in every forward pass and not
        differentiated. For a fixed mask pass ``lambda _: mask``.
      decay: :math:`\lambda \geq 0`, which pulls pruned weights toward 0. It is added to
        the gradient of the parameters, and does not scale with the loss.
      backward: ``backward(params) -> mask``, the weights that get a gradient; the
        gradient of all others is 0. None for all weights.

    Returns:
      A function with the signature of ``fn``. It can be differentiated in reverse mode
      only.

    Raises:
      ValueError: if ``decay`` is a number below 0; when called, if a mask does not
        match the parameters or keeps no weight at all.
      TypeError: if ``fn`` or ``mask_fn`` is not a function, or ``decay`` is not a
        number; when called, if a mask is not bool.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def loss_fn(params, x):
      ...     return jnp.sum(x @ params["w"])
      >>> def two_of_four(params):
      ...     return jp.n_m_mask(jp.magnitude(params), 2, 4)
      >>> sparse_loss = jp.forward_sparse(loss_fn, two_of_four, decay=0.5)
      >>> params = {"w": jnp.array([[4.0], [1.0], [2.0], [3.0]])}
      >>> loss, gradient = jax.value_and_grad(sparse_loss)(params, jnp.ones((1, 4)))
      >>> loss, gradient["w"].ravel()
      (Array(7., dtype=float32), Array([1. , 1.5, 2. , 1. ], dtype=float32))

    References:
      Zhou et al., `Learning N:M Fine-grained Structured Sparse Neural Networks From
      Scratch <https://arxiv.org/abs/2102.04010>`_, ICLR 2021, Equation 9.
      Jayakumar et al., `Top-KAST: Top-K Always Sparse Training
      <https://arxiv.org/abs/2106.03517>`_, NeurIPS 2020, Section 2.1.
    """
    _check_decay(decay)
    _checks.check_callable(fn, "fn", "fn(params, *args)")
    for name, value in (("mask_fn", mask_fn), ("backward", backward or mask_fn)):
        _checks.check_callable(
            value, name, "params -> mask (for a fixed mask pass lambda _: mask)"
        )

    @functools.wraps(fn)
    def sparse_fn(params: Params, *args: Any, **kwargs: Any) -> Any:
        held = jax.lax.stop_gradient(params)
        mask = mask_fn(held)
        _checks.check_mask(mask, params)
        reached = jax.tree.map(lambda m: jnp.ones_like(m), mask)
        if backward is not None:
            reached = backward(held)
            _checks.check_mask(reached, params, "backward")
        return fn(_through(params, mask, reached, decay), *args, **kwargs)

    return sparse_fn


@jax.custom_vjp
def _through(params: Params, mask: Any, reached: Any, decay: Any) -> Params:
    """Applies the mask; its derivative is the identity plus a decay."""
    del reached, decay
    return apply_mask(params, mask)


def _forward(params: Any, mask: Any, reached: Any, decay: Any) -> Any:
    return apply_mask(params, mask), (params, mask, reached, decay)


def _backward(residuals: Any, cotangent: Any) -> Any:
    params, mask, reached, decay = residuals

    def one(g: jax.Array, p: jax.Array, m: jax.Array, reach: jax.Array) -> jax.Array:
        pull = jnp.where(m, jnp.zeros_like(p), p) * jnp.asarray(decay, p.dtype)
        return jnp.where(reach, g + pull, jnp.zeros_like(g))

    return jax.tree.map(one, cotangent, params, mask, reached), None, None, None


_through.defvjp(_forward, _backward)


def _check_decay(decay: Any) -> None:
    known = _checks.is_python_number(decay)
    if not known and not (isinstance(decay, jax.Array) and decay.ndim == 0):
        raise TypeError(f"decay must be a number, at least 0; got {decay!r}.")
    if known and not (np.isfinite(decay) and decay >= 0):
        raise ValueError(f"decay must be a finite number, at least 0; got {decay}.")
