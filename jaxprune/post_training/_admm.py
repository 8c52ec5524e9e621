"""ADMM pruning: finds the mask and the new weights together."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Params, Prunable
from jaxprune.masks._n_m import best_of_groups
from jaxprune.masks._selection import best_of_all
from jaxprune.post_training._layers import Matrix, Rule, prune_layers
from jaxprune.post_training._obs import damped_products
from jaxprune.post_training._sparse_gpt import check_damping, products

_dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
_ROUND = 3  # Iterations between two checks of the support.
_LEAST, _MOST = 30, 300  # Iterations.


def admm(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    *,
    sparsity: Any = None,
    n_m: tuple[int, int] | None = None,
    prior: Mask | None = None,
    prunable: Prunable | None = None,
    damping: float = 0.01,
) -> tuple[Params, Mask]:
    r"""Fits the outputs of each layer with sparse weights, by ADMM.

    With the products :math:`H = X X^\top` of a layer's inputs, scaled to a diagonal of
    1, it minimizes :math:`\tfrac12 \lVert X^\top (W - W_0) \rVert^2` over matrices W
    with the required number of zeros. The zeros are in a copy D of W:

    .. math::
        W &\leftarrow (H + \rho I)^{-1} (H W_0 - V + \rho D), \\
        D &\leftarrow \text{the largest entries of } W + V / \rho, \\
        V &\leftarrow V + \rho (W - D).

    One eigendecomposition of H serves all :math:`\rho`, which starts at 0.1 and grows
    every 3 iterations: by 30 % if more than 10 % of the kept weights have changed, by
    20 % if more than 0.5 % have, else by 10 %. After at least 30 iterations, once fewer
    than 0.03 % change, ten steps of conjugate gradients fit the kept weights.

    The largest entries are those of the whole layer, or n of every m inputs. We also
    fit the first mask, by magnitude of the scaled weights, and return it unless the
    last mask's error is smaller by 0.1 %, so with uncorrelated inputs the first mask
    and its values stay. The paper does neither. ADMM takes more time than
    `sparse_gpt` and is better at high sparsity.

    Args:
      fn: ``fn(params, batch)``, the forward pass; what it returns is not read.
      params: any pytree of floating arrays. Weights that are 0 stay 0.
      batches: the calibration data, read once; ``fn`` is called with each batch.
      sparsity: fraction of the weights of each layer removed, in [0, 1): a number, or a
        tree of numbers like ``params``, or a prefix of one.
      n_m: instead of ``sparsity``, the pair (n, m): n of every m inputs are kept.
      prior: a mask. Weights that it prunes stay pruned and count toward ``sparsity``.
      prunable: which leaves take part; by default those that a product contracts with
        activations, as for `sparse_gpt`.
      damping: the number added to H's diagonal, as a fraction of its mean; above 0.

    Returns:
      The parameters with new weights and the mask, as `sparse_gpt` returns them.

    Raises:
      ValueError: as `sparse_gpt` does.
      TypeError: if a leaf is not floating, or ``damping`` is not a number.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0], [3.0]])}
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0]])  # The inputs are always equal.
      >>> params, mask = jp.admm(
      ...     lambda p, x: x @ p["w"], params, [x], sparsity=0.5, damping=1e-4
      ... )
      >>> params["w"].round(2)  # The kept weight does the work of both.
      Array([[0.],
             [4.]], dtype=float32)

    References:
      Meng et al., `ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for
      Large Language Models <https://arxiv.org/abs/2406.07831>`_, NeurIPS 2024.
      Boža, `Fast and Effective Weight Update for Pruned Large Language Models
      <https://arxiv.org/abs/2401.02938>`_, TMLR 2024.
    """
    return prune_layers(
        _rule(check_damping(damping)),
        fn,
        params,
        batches,
        sparsity=sparsity,
        n_m=n_m,
        prior=prior,
        prunable=prunable,
    )


@functools.cache
def _rule(damping: float) -> Rule:
    return Rule(products, functools.partial(_prepare, damping), _solve, _of_a_layer)


def _of_a_layer(sparsity: float, outputs: int, inputs: int) -> list[int]:
    return [outputs * inputs - round(sparsity * outputs * inputs)]


class Problem(NamedTuple):
    """H scaled to a diagonal of 1, the scale, and H's eigenvalues and vectors."""

    products: jax.Array
    scale: jax.Array
    values: jax.Array
    vectors: jax.Array


def _prepare(damping: float, products: jax.Array) -> Problem:
    products, dead = damped_products(damping, products)
    scale = jnp.sqrt(jnp.diagonal(products))
    products = products / (scale[:, None] * scale[None])
    # Dead inputs go first, the smallest weights first.
    scale = jnp.where(dead & ~dead.all(), 1e-6 * jnp.min(scale), scale)
    values, vectors = jnp.linalg.eigh(products)
    return Problem(products, scale, jnp.maximum(values, 0), vectors)


def _solve(
    matrix: Matrix, problem: Problem, keep: Any, n_m: tuple[int, int] | None
) -> tuple[jax.Array, jax.Array]:
    """Prunes a matrix; everything is transposed, (inputs, outputs)."""
    allowed, scale = matrix.allowed.T, problem.scale[:, None]
    dense = matrix.weights.T * scale
    goal = _dot(problem.products, dense)

    def support(x: jax.Array) -> jax.Array:
        sizes = jnp.where(allowed, jnp.abs(x), -jnp.inf)
        if n_m is not None:
            return best_of_groups(sizes, *n_m, 0) & allowed
        (mask,) = best_of_all([sizes], jax.tree.map(lambda word: word[0], keep))
        return mask & allowed

    def step(_: Any, state: tuple) -> tuple:
        dual, sparse, mask, rho = state
        inside = _dot(problem.vectors.T, goal - dual + rho * sparse)
        weights = _dot(problem.vectors, inside / (problem.values + rho)[:, None])
        moved = weights + dual / rho
        mask = support(moved)
        sparse = jnp.where(mask, moved, 0)
        return dual + rho * (weights - sparse), sparse, mask, rho

    def body(state: tuple) -> tuple:
        count, _, (dual, sparse, mask, rho) = state
        dual, sparse, new, rho = jax.lax.fori_loop(
            0, _ROUND, step, (dual, sparse, mask, rho)
        )
        kept = jnp.maximum(jnp.sum(new, dtype=jnp.float32), 1)
        change = jnp.sum(new & ~mask, dtype=jnp.float32) / kept
        grown = jnp.where(change > 0.1, 1.3, jnp.where(change > 0.005, 1.2, 1.1))
        return count + _ROUND, change, (dual, sparse, new, rho * grown)

    def unsettled(state: tuple) -> jax.Array:
        count, change, _ = state
        return (count < _LEAST) | ((change >= 3e-4) & (count < _MOST))

    first = support(dense)
    start = jnp.where(first, dense, 0)
    state = jnp.zeros_like(dense), start, first, jnp.float32(0.1)
    *_, (_, sparse, mask, _) = jax.lax.while_loop(
        unsettled, body, (jnp.int32(0), jnp.float32(1), state)
    )
    fits = [
        _fitted(problem.products, goal, *x) for x in ((start, first), (sparse, mask))
    ]
    errors = [jnp.sum((dense - x) * _dot(problem.products, dense - x)) for x in fits]
    better = errors[1] < 0.999 * errors[0]
    weights = jnp.where(better, fits[1], fits[0]) / scale
    return weights.T, jnp.where(better, mask, first).T


def _fitted(
    products: jax.Array, goal: jax.Array, weights: jax.Array, mask: jax.Array
) -> jax.Array:
    """Ten steps of conjugate gradients on the kept weights, output by output."""

    def masked(x: jax.Array) -> jax.Array:
        return jnp.where(mask, x, 0)

    def size(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x), axis=0, keepdims=True)

    enough = 1e-8 * size(masked(goal))  # A relative residual of 1e-4.

    def step(_: Any, state: tuple) -> tuple:
        weights, residual, direction = state
        moved = masked(_dot(products, direction))
        along = jnp.sum(direction * moved, axis=0, keepdims=True)
        old = size(residual)
        on = (old > enough) & (along > 0)
        rate = jnp.where(on, old / jnp.where(on, along, 1), 0)
        residual = residual - rate * moved
        turn = jnp.where(on, size(residual) / jnp.where(on, old, 1), 0)
        return weights + rate * direction, residual, residual + turn * direction

    residual = masked(goal - _dot(products, weights))
    return jax.lax.fori_loop(0, 10, step, (weights, residual, residual))[0]
