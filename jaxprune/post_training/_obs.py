"""SparseGPT's column-by-column elimination for one matrix."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.masks._n_m import best_of_groups
from jaxprune.masks._selection import best_of_all
from jaxprune.post_training._layers import Matrix

_dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)


class Factor(NamedTuple):
    r"""The upper factor U, :math:`U^\top U = H^{-1}`, and which inputs are always 0."""

    upper: jax.Array
    dead: jax.Array


def damped_products(damping: float, products: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Adds a fraction of the mean of the live inputs to the diagonal.

    Inputs that are always 0 get this mean first, so the result scales with the inputs.
    Also returns which inputs these are.
    """
    diagonal = jnp.diagonal(products)
    dead = diagonal == 0
    mean = jnp.sum(diagonal) / jnp.maximum(jnp.sum(~dead), 1)
    mean = jnp.where(dead.all(), 1, mean)
    identity = jnp.eye(len(products), dtype=products.dtype)
    filled = jnp.where(jnp.diag(dead), mean, products)
    return filled + damping * mean * identity, dead


def factor(damping: float, products: jax.Array) -> Factor:
    r"""Finds U without inverting H.

    If :math:`H = V V^\top` with V upper, :math:`U = V^{-1}`; V is the Cholesky factor
    of H in reverse order, reversed.
    """
    damped, dead = damped_products(damping, products)
    identity = jnp.eye(len(products), dtype=products.dtype)
    lower = jnp.linalg.cholesky(damped[::-1, ::-1])
    upper = jax.scipy.linalg.solve_triangular(lower[::-1, ::-1], identity, lower=False)
    return Factor(upper, dead)


def solve(
    block: int, matrix: Matrix, factor: Factor, keep: Any, n_m: tuple[int, int] | None
) -> tuple[jax.Array, jax.Array]:
    r"""Prunes a matrix (outputs, inputs), ``block`` columns at a time.

    With the error :math:`e = w / U_{jj}` of a pruned column j, the later columns k
    become :math:`w_k - e U_{jk}`: at once inside the block, in one product after it.
    Everything is transposed, so that a column of the matrix is contiguous.

    Args:
      block: columns whose weights are compared with one another.
      matrix: the weights, and which of them may be kept.
      factor: of the products of the inputs.
      keep: the number of weights kept in a whole block, and in the last block.
      n_m: instead of ``keep``, the number kept in a group, and the size of a group.

    Returns:
      The new weights, float32, and the mask.
    """
    weights, allowed = matrix.weights.T, matrix.allowed.T
    width = len(weights)

    def body(start: Any, size: int, count: Any, state: tuple) -> tuple:
        weights, kept = state

        def cut(x: jax.Array, axis: int = 0) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

        rows = cut(factor.upper)
        small = Factor(cut(rows, 1), cut(factor.dead))
        done, mask, errors = _block(cut(weights), cut(kept), small, count, n_m)
        later = jnp.where(jnp.arange(width) >= start + size, rows, 0)
        weights = weights - _dot(later.T, errors)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
        return put(weights, done, start), put(kept, mask, start)

    def count(i: int) -> Any:
        return jax.tree.map(lambda word: word[i], keep)

    whole, rest = divmod(width, block)
    state = weights, allowed
    if whole:
        state = jax.lax.fori_loop(
            0, whole, lambda i, s: body(i * block, block, count(0), s), state
        )
    if rest:
        state = body(whole * block, rest, count(1), state)
    return state[0].T, state[1].T


def _block(
    weights: jax.Array,
    allowed: jax.Array,
    factor: Factor,
    keep: Any,
    n_m: tuple[int, int] | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prunes the rows of one block; returns them, their mask and the errors."""
    diagonal = jnp.diagonal(factor.upper)[:, None]

    def scored(weights: jax.Array, allowed: jax.Array, at: Any, size: int) -> Any:
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=at, slice_size=size
        )
        scores = jnp.square(weights / cut(diagonal))
        # Dead inputs go first, the smallest weights first.
        dead = cut(factor.dead[:, None])
        scores = jnp.where(dead, -1 / jnp.abs(weights), scores)
        return jnp.where(allowed, scores, -jnp.inf)

    mask = allowed
    if n_m is None:
        scores = scored(weights, allowed, 0, len(weights))
        (mask,) = best_of_all([scores], keep)
        mask &= allowed

    def row(j: jax.Array, state: tuple) -> tuple:
        weights, mask, errors = state
        if n_m is not None:
            mask = jax.lax.cond(
                j % n_m[1] == 0, grouped, lambda w, m, j: m, weights, mask, j
            )
        error = jnp.where(mask[j], 0, weights[j]) / diagonal[j]
        later = jnp.where(jnp.arange(len(weights)) > j, factor.upper[j], 0)
        return weights - later[:, None] * error[None], mask, errors.at[j].set(error)

    def grouped(weights: jax.Array, mask: jax.Array, j: jax.Array) -> jax.Array:
        assert n_m is not None
        n, m = n_m
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=j, slice_size=m
        )
        own = cut(mask)
        chosen = best_of_groups(scored(cut(weights), own, j, m), n, m, 0) & own
        return jax.lax.dynamic_update_slice_in_dim(mask, chosen, j, 0)

    state = weights, mask, jnp.zeros_like(weights)
    weights, mask, errors = jax.lax.fori_loop(0, len(weights), row, state)
    return jnp.where(mask, weights, 0), mask, errors
