"""SparseGPT's column-by-column elimination for one matrix."""

import functools

import jax
import jax.numpy as jnp

from jaxprune.core import _uint64
from jaxprune.masks._n_m import best_of_groups
from jaxprune.masks._selection import best_of_all

_dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)


def solve(
    weights: jax.Array,
    products: jax.Array,
    *,
    sparsity: float | None,
    n_m: tuple[int, int] | None,
    block: int,
    damping: float,
) -> tuple[jax.Array, jax.Array]:
    r"""Prunes a matrix (outputs, inputs), given :math:`X X^\top` of its inputs.

    With the error :math:`e = w / U_{jj}` of a pruned column j, the later columns k
    become :math:`w_k - e U_{jk}`: at once inside the block, in one product after it.

    Returns:
      The new weights, float32, pruned ones exactly 0, and the mask.
    """
    dead = jnp.diagonal(products) == 0
    weights = jnp.where(dead[None], 0, weights)
    factor = _factor(jnp.where(jnp.diag(dead), 1, products), damping)
    kept = _all_true(weights)
    width = weights.shape[1]

    def body(start: jax.Array | int, size: int, state: tuple) -> tuple:
        weights, kept = state
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size
        )
        rows = cut(factor, axis=0)
        done, mask, errors = _block(
            cut(weights, axis=1), cut(rows, axis=1), sparsity, n_m
        )
        later = jnp.arange(width) >= start + size
        weights = weights - _dot(errors, jnp.where(later[None], rows, 0))
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        return put(weights, done, start), put(kept, mask, start)

    whole, rest = divmod(width, block)
    state = weights, kept
    if whole:
        state = jax.lax.fori_loop(
            0, whole, lambda i, s: body(i * block, block, s), state
        )
    return body(whole * block, rest, state) if rest else state


def _all_true(weights: jax.Array) -> jax.Array:
    """A mask with the sharding of the weights, which a constant would not have."""
    return jnp.isfinite(weights) | True


def _factor(products: jax.Array, damping: float) -> jax.Array:
    r"""The upper U with :math:`U^\top U = H^{-1}`, without inverting H.

    If :math:`H = V V^\top` with V upper, :math:`U = V^{-1}`; V is the Cholesky factor
    of H in reverse order, reversed.
    """
    identity = jnp.eye(len(products), dtype=products.dtype)
    damped = products + damping * jnp.mean(jnp.diagonal(products)) * identity
    upper = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(upper, identity, lower=False)


def _block(
    weights: jax.Array,
    factor: jax.Array,
    sparsity: float | None,
    n_m: tuple[int, int] | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prunes one block; returns its weights, its mask and the errors to spread."""
    diagonal = jnp.diagonal(factor)
    width = weights.shape[1]
    if sparsity is not None:
        keep = weights.size - round(sparsity * weights.size)
        (mask,) = best_of_all(
            [jnp.square(weights / diagonal[None])], _uint64.wide(keep)
        )
    else:
        mask = _all_true(weights)

    def column(j: jax.Array, state: tuple) -> tuple:
        weights, mask, errors = state
        if n_m is not None:
            mask = jax.lax.cond(j % n_m[1] == 0, _grouped, _same, weights, mask, j)
        w, d = weights[:, j], diagonal[j]
        error = jnp.where(mask[:, j], 0, w) / d
        later = jnp.where(jnp.arange(width) > j, factor[j], 0)
        weights = weights - jnp.outer(error, later)
        return weights, mask, errors.at[:, j].set(error)

    def _grouped(weights: jax.Array, mask: jax.Array, j: jax.Array) -> jax.Array:
        assert n_m is not None
        n, m = n_m
        scores = jax.lax.dynamic_slice_in_dim(
            jnp.square(weights / diagonal[None]), j, m, axis=1
        )
        chosen = best_of_groups(scores, n, m, 1)
        return jax.lax.dynamic_update_slice_in_dim(mask, chosen, j, axis=1)

    def _same(weights: jax.Array, mask: jax.Array, j: jax.Array) -> jax.Array:
        del weights, j
        return mask

    state = weights, mask, jnp.zeros_like(weights)
    weights, mask, errors = jax.lax.fori_loop(0, width, column, state)
    return jnp.where(mask, weights, 0), mask, errors
