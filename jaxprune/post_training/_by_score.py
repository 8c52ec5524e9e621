"""A post-training method from a score of weights and the norms of their inputs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Params
from jaxprune.core import _checks
from jaxprune.masks._n_m import best_of_groups
from jaxprune.masks._selection import best_of_all
from jaxprune.post_training._layers import Matrix, Rule, prune_layers
from jaxprune.post_training._wanda import squares

Method = Callable[..., tuple[Params, Mask]]
"""``method(fn, params, batches, *, sparsity, n_m, prior, prunable)``."""


def by_score(score: Callable[..., Any]) -> Method:
    r"""Makes a post-training method from a score; kept weights do not change.

    Every output keeps its best weights, or n of every m consecutive inputs. A score of
    weights and inputs is computed for each layer alone, the function ``x @ weights.T``,
    on one token: the norms :math:`\lVert X_j \rVert_2` of the layer's inputs over all
    batches. Only one vector per layer is kept in memory, and the result is exact for
    scores that depend on the inputs only through these norms.

    Args:
      score: a builder whose first parameter is ``fn``, such as `wanda` or `ria`, or a
        score of the weights alone, such as `magnitude`. It is called with one matrix
        (outputs, inputs), float32.

    Returns:
      ``method(fn, params, batches, *, sparsity=None, n_m=None, prior=None,
      prunable=None) -> (params, mask)``, with the arguments of `sparse_gpt`. Of the n
      weights of each output, ``round(sparsity * n)`` are removed. Layers whose inputs
      were always 0 are pruned by magnitude, with a warning.

    Raises:
      TypeError: if ``score`` cannot be called.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> wanda = jp.by_score(jp.wanda)
      >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 1.0]])}
      >>> batches = [jnp.array([[4.0, 1.0]]), jnp.array([[3.0, 1.0]])]
      >>> params, mask = wanda(lambda p, x: x @ p["w"], params, batches, sparsity=0.5)
      >>> params["w"]
      Array([[ 1., -2.],
             [ 0.,  0.]], dtype=float32)
    """
    _checks.check_callable(score, "score", "score(params), or a builder as jp.wanda")
    return functools.partial(prune_layers, _rule(score))


@functools.lru_cache
def _rule(score: Callable[..., Any]) -> Rule:
    """Cached, so that all methods of a score share its compiled programs."""
    sees_inputs = next(iter(inspect.signature(score).parameters), None) == "fn"

    def solve(matrix: Matrix, norms: jax.Array, keep: Any, n_m: Any) -> Any:
        weights = matrix.weights
        if sees_inputs:
            scores = score(_linear)(weights, norms[None])
            scores = jnp.where(jnp.any(norms > 0), scores, jnp.abs(weights))
        else:
            scores = score(weights)
        scores = jnp.where(matrix.allowed, scores, -jnp.inf)
        if n_m is not None:
            return weights, best_of_groups(scores, *n_m, 1) & matrix.allowed
        kept = jax.tree.map(lambda word: word[0], keep)
        mask = jax.vmap(lambda row: best_of_all([row], kept)[0])(scores)
        return weights, mask & matrix.allowed

    measure = squares if sees_inputs else _nothing
    return Rule(measure, jnp.sqrt, solve, _of_a_row)


def _linear(weights: jax.Array, x: jax.Array) -> jax.Array:
    return x @ weights.T


def _nothing(x: jax.Array, batch: int, inputs: int) -> jax.Array:
    del inputs
    return jnp.ones((*x.shape[:batch], 1))


def _of_a_row(sparsity: float, outputs: int, inputs: int) -> list[int]:
    del outputs
    return [inputs - round(sparsity * inputs)]
