"""Wanda: a weight's absolute value times the norm of the input that it multiplies."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Params, Prunable, ScoreFn, Scores
from jaxprune.core import _checks
from jaxprune.core._dtypes import upcast_half
from jaxprune.core._placement import replicate, shard_like
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.post_training._capture import Capture, Layout
from jaxprune.post_training._layers import products


def wanda(fn: Callable[..., Any], *, prunable: Prunable = matrices) -> ScoreFn:
    r"""Builds the Wanda score: the size of a weight's contribution to its output.

    For a layer :math:`y = W x` and the inputs :math:`X` of all tokens,

    .. math:: S_{ij} = |W_{ij}| \, \lVert X_j \rVert_2.

    The inputs are read from the jaxpr: a leaf's inputs are the other operand of a
    matrix product with any dimension numbers or of an ungrouped convolution, also
    inside ``jit``, ``remat``, ``scan`` and ``cond``. Squares are summed over all uses
    of a leaf, separately for each layer of a stack that a ``scan`` or ``vmap`` runs
    along. Before the product a leaf may be converted, transposed, reshaped, or
    multiplied by a mask or a scale that does not depend on the inputs; a scale counts
    as 1. Products are not found if the leaf is sliced first, or reaches them through a
    ``while`` loop, a scan's carry or a ``shard_map`` inside ``fn``; only the other uses
    of the leaf then count. A product of two leaves has no inputs. Leaves that scale
    activations or are added to them, such as a norm's scale and biases, are not scored,
    even if ``prunable`` selects them.

    The paper compares scores within each output: pass them to `row_mask` or `n_m_mask`,
    or use `by_score`, which also reads many batches in little memory. To combine the
    scores of several batches or devices, take the root of the sum of their squares
    (``psum`` over devices).

    Args:
      fn: ``fn(params, *inputs)``, the forward pass; what it returns is not read.
      prunable: the leaves to score by their inputs. The remaining leaves score
        :math:`|\theta|`, as if their inputs were 1.

    Returns:
      A score function ``score(params, *inputs)``: non-negative scores like ``params``,
      float32 or wider.

    Raises:
      ValueError: when called, if a prunable leaf is neither in a product nor meets
        activations elementwise, none is in a product, or one is in products that sum
        over different axes of it.
      TypeError: when called, if a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> score = jp.wanda(lambda params, x: x @ params["w"])
      >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.0]])}
      >>> score(params, jnp.array([[3.0, 1.0], [4.0, 0.0]]))["w"]
      Array([[ 5., 10.],
             [ 3.,  0.]], dtype=float32)

    References:
      Sun et al., `A Simple and Effective Pruning Approach for Large Language Models
      <https://arxiv.org/abs/2306.11695>`_, ICLR 2024, Section 3.
    """
    return score_by_norms(fn, prunable, lambda sizes, norms, layout: sizes * norms)


def score_by_norms(
    fn: Callable[..., Any],
    prunable: Prunable,
    combine: Callable[[jax.Array, jax.Array, Layout], jax.Array],
) -> ScoreFn:
    """Builds a score from the size of a weight and the norm of its input."""
    _checks.check_callable(fn, "fn", "fn(params, *inputs) -> outputs")

    def score(params: Params, *inputs: Any) -> Scores:
        _checks.check_floating(params, "params")
        flags = select_prunable(params, prunable)
        capture = Capture(params, squares, flags)
        totals = capture(fn, params, inputs)
        products(capture, flags)
        leaves, structure = jax.tree.flatten(params)
        scores = [jnp.abs(w) for w in jax.tree.leaves(upcast_half(params))]
        for leaf, total in totals.items():
            layout, shape = capture.layouts[leaf], capture.shapes[leaf]
            norms = jnp.sqrt(like_leaf(total, layout, shape))
            scores[leaf] = combine(scores[leaf], norms, layout)
        placed = [shard_like(s, w) for s, w in zip(scores, leaves, strict=True)]
        return jax.tree.unflatten(structure, placed)

    return score


def input_axes(
    fn: Callable[..., Any], params: Params, *inputs: Any, prunable: Prunable = matrices
) -> dict[str, tuple[int, ...]]:
    """Finds the axes of each leaf that the function sums over: a layer's inputs.

    Nothing is computed. The remaining axes number the outputs, or the layers.

    Args:
      fn: ``fn(params, *inputs)``, the forward pass.
      params: a pytree of floating arrays, or of ``jax.ShapeDtypeStruct``.
      *inputs: the other arguments of ``fn``, arrays or their shapes.
      prunable: the leaves whose input axes to find.

    Returns:
      A dict from paths to axes, in the order of first use, for `row_mask` and
      `n_m_mask`. Leaves that only scale activations or are added to them are left out.

    Raises:
      ValueError: if a prunable leaf is neither in a product nor meets activations
        elementwise, none is in a product, one is in products that sum over different
        axes of it, or nothing is prunable.
      TypeError: if a leaf is not floating.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> def project(params, x):
      ...     return jnp.einsum("td,dhk->thk", x, params["query"])
      >>> jp.input_axes(project, {"query": jnp.ones((4, 2, 3))}, jnp.ones((5, 4)))
      {'query': (0,)}
    """
    _checks.check_floating(params, "params")
    flags = select_prunable(params, prunable)
    capture = Capture(params, squares, flags)
    jax.eval_shape(lambda p, xs: capture(fn, p, xs), params, inputs)
    found = capture.layouts
    return {capture.paths[i]: found[i].inputs for i in products(capture, flags)}


def squares(x: jax.Array, batch: int, inputs: int) -> jax.Array:
    """The squared norm of every input."""
    total = jnp.sum(jnp.square(x), axis=range(batch, x.ndim - inputs))
    total, _ = replicate(total)
    return total.reshape(*total.shape[:batch], -1)


def like_leaf(total: jax.Array, layout: Layout, shape: tuple[int, ...]) -> jax.Array:
    """Reshapes a number for each input to broadcast against the leaf."""
    axes = (*layout.batch, *layout.inputs)
    total = total.reshape([shape[i] for i in axes])
    total = jnp.transpose(total, sorted(range(len(axes)), key=lambda i: axes[i]))
    return total.reshape([n if i in axes else 1 for i, n in enumerate(shape)])
