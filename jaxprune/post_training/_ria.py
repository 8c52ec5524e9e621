"""RIA: a weight's size relative to its row and its column, times its input's norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Prunable, Real, ScoreFn
from jaxprune.core import _checks
from jaxprune.core._prunable import matrices
from jaxprune.post_training._capture import Layout
from jaxprune.post_training._wanda import score_by_norms


def ria(
    fn: Callable[..., Any], *, power: Real = 0.5, prunable: Prunable = matrices
) -> ScoreFn:
    r"""Builds the RIA score: a weight's relative importance, times its input's norm.

    For a layer :math:`y = W x` and the inputs :math:`X` of all tokens,

    .. math:: S_{ij} = \left( \frac{|W_{ij}|}{\sum_k |W_{kj}|}
              + \frac{|W_{ij}|}{\sum_k |W_{ik}|} \right) \lVert X_j \rVert_2^a,

    where i numbers outputs and j inputs. Relative sizes keep whole rows and columns of
    small weights from being pruned. The inputs are found as `wanda` finds them. The
    paper's reordering of channels for N:M is not implemented.

    Args:
      fn: ``fn(params, *inputs)``, the forward pass; what it returns is not read.
      power: the exponent a of the norms.
      prunable: the leaves to score by their inputs. The remaining leaves score
        :math:`|\theta|`.

    Returns:
      A score function ``score(params, *inputs)``: non-negative scores like ``params``,
      float32 or wider.

    Raises:
      ValueError: when called, as `wanda`.
      TypeError: if ``power`` is not a number; when called, if a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> score = jp.ria(lambda params, x: params["w"] @ x)
      >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 2.0]])}
      >>> score(params, jnp.array([4.0, 16.0]))["w"].round(2)
      Array([[1.17, 4.67],
             [2.7 , 3.6 ]], dtype=float32)

    References:
      Zhang et al., `Plug-and-Play: An Efficient Post-training Pruning Method for Large
      Language Models <https://openreview.net/forum?id=Tr0lPx9woF>`_, ICLR 2024,
      Section 3.1.
    """
    if not _checks.is_python_number(power):
        raise TypeError(f"power must be a number; got {_checks.described(power)}.")

    def combine(sizes: jax.Array, norms: jax.Array, layout: Layout) -> jax.Array:
        outputs = [
            i for i in range(sizes.ndim) if i not in (*layout.inputs, *layout.batch)
        ]
        column = jnp.sum(sizes, axis=outputs, keepdims=True)
        row = jnp.sum(sizes, axis=layout.inputs, keepdims=True)
        shares = [sizes / jnp.where(total > 0, total, 1) for total in (column, row)]
        return (shares[0] + shares[1]) * norms**power

    return score_by_norms(fn, prunable, combine)
