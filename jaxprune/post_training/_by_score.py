"""A post-training method from a score of weights and the norms of their inputs."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Params, Prunable
from jaxprune.core import _checks
from jaxprune.masks._n_m import best_of_groups
from jaxprune.masks._selection import best_of_all
from jaxprune.post_training._layers import Matrix, Rule, prune_layers
from jaxprune.post_training._wanda import squares

Method = Callable[..., tuple[Params, Mask]]
"""``method(fn, params, batches, *, sparsity, n_m, prior, prunable) -> (params, mask)``."""


def by_score(score: Callable[..., Any]) -> Method:
    """Makes a post-training method of a score: no remaining weight changes."""
    _checks.check_callable(score, "score", "score(params), or a builder as jp.wanda")
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
    rule = Rule(measure, jnp.sqrt, solve, _of_a_row)

    def method(
        fn: Callable[..., Any],
        params: Params,
        batches: Iterable[Any],
        *,
        sparsity: Any = None,
        n_m: tuple[int, int] | None = None,
        prior: Mask | None = None,
        prunable: Prunable | None = None,
    ) -> tuple[Params, Mask]:
        return prune_layers(
            rule,
            fn,
            params,
            batches,
            sparsity=sparsity,
            n_m=n_m,
            prior=prior,
            prunable=prunable,
        )

    return method


def _linear(weights: jax.Array, x: jax.Array) -> jax.Array:
    return x @ weights.T


def _nothing(x: jax.Array, batch: int, inputs: int) -> jax.Array:
    del inputs
    return jnp.ones((*x.shape[:batch], 1))


def _of_a_row(sparsity: float, outputs: int, inputs: int) -> list[int]:
    del outputs
    return [inputs - round(sparsity * inputs)]
