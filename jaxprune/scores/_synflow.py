"""SynFlow: scores without data, from the strength of the paths through a network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Params, ScoreFn, Scores
from jaxprune.core import _checks
from jaxprune.core._dtypes import upcast_half


def synflow(
    apply_fn: Callable[..., Any], *, dtype: jax.typing.DTypeLike | None = None
) -> ScoreFn:
    r"""Builds the SynFlow score: the total strength of all paths through a weight.

    .. math:: s_i = |\theta_i| \, \partial R / \partial |\theta_i|, \qquad
              R = \sum_{\text{outputs}} f_{|\theta|}(\mathbf{1})

    sums the outputs for an input of ones and absolute weights, so no data is needed.
    The absolute value is taken of every floating leaf, including biases and
    normalization parameters, but not of running statistics that ``apply_fn`` closes
    over: apply the model in eval mode. R is not rescaled. In deep networks it overflows
    float32; pass ``dtype=jnp.float64`` there. The paper prunes in 100 rounds; see
    `iterative_mask`.

    Args:
      apply_fn: ``apply_fn(params, *inputs) -> outputs``, any tree of floating outputs.
      dtype: a floating dtype to compute in; by default that of the parameters.
        ``jnp.float64`` works even if x64 is disabled, also under ``jit``. (One
        exception: a jitted score of a model with max pooling must be called inside
        ``with jax.enable_x64(True):``, because JAX builds the gradient of max pooling
        while it compiles.)

    Returns:
      A score function ``score(params, *inputs)``. Floating inputs are replaced by ones
      of their shape and dtype; other inputs (token ids, keys) are passed on. Its scores
      are non-negative, like ``params``, in float32, or in ``dtype`` if that is wider.

    Raises:
      TypeError: if ``dtype`` is not floating; when called, if a leaf of ``params`` is
        not floating, or if no output is.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0], [1.0]])}
      >>> score = jp.synflow(lambda p, x: x @ p["a"] @ p["b"])
      >>> score(params, jnp.zeros((1, 1)))["a"]
      Array([[3., 2.]], dtype=float32)

    References:
      Tanaka et al., `Pruning neural networks without any data by iteratively conserving
      synaptic flow <https://arxiv.org/abs/2006.05467>`_, NeurIPS 2020, Section 5.
    """
    _checks.check_callable(apply_fn, "apply_fn", "apply_fn(params, *inputs) -> outputs")
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "dtype must be a floating-point dtype to compute in, such as jnp.float64; "
            f"got {jnp.dtype(dtype).name}."
        )

    def strength(params: Params, inputs: tuple[Any, ...]) -> jax.Array:
        outputs = jax.tree.leaves(apply_fn(params, *inputs))
        outputs = [jnp.sum(y) for y in outputs if _checks.is_floating(y)]
        if not outputs:
            raise TypeError(
                "synflow sums the floating outputs of apply_fn, but it returned none. "
                "Pass a function that returns logits or activations."
            )
        return sum(outputs[1:], start=outputs[0])

    def computed(params: Params, *inputs: Any) -> Scores:
        def cast(x: Any) -> Any:
            return x if dtype is None else jnp.asarray(x).astype(dtype)

        positive = jax.tree.map(lambda p: cast(jnp.abs(p)), params)
        ones = jax.tree.map(
            lambda x: cast(jnp.ones_like(x)) if _checks.is_floating(x) else x, inputs
        )
        gradient = jax.grad(strength)(positive, ones)
        return jax.tree.map(
            lambda p, g: jnp.abs(upcast_half(p) * upcast_half(g)), positive, gradient
        )

    def score(params: Params, *inputs: Any) -> Scores:
        _checks.check_floating(params, "params")
        if dtype is not None and jnp.dtype(dtype) == jnp.dtype("float64"):
            with jax.enable_x64(True):
                return computed(params, *inputs)
        return computed(params, *inputs)

    return score
