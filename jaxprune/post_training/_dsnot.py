"""DSnoT: swaps pruned and kept weights to bring the mean output closer to the dense."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Params, Prunable, Real
from jaxprune.core import _checks
from jaxprune.core._placement import replicate
from jaxprune.post_training._by_score import Method
from jaxprune.post_training._layers import Matrix, Rule, prune_layers


def dsnot(method: Method, *, cycles: int = 50, threshold: Real = 0.1) -> Method:
    r"""Refines the mask of another method, weight by weight, without new values.

    Let :math:`e_i = \sum_{j \text{ pruned}} W_{ij} \, E[X_j]` be the mean error of
    output i. In each cycle, every output makes one swap. Among the pruned weights that
    would lower :math:`|e_i|`, it regrows the one with the largest
    :math:`|W_{ij} E[X_j]| / \mathrm{Var}[X_j]`. Among the kept weights whose removal
    would lower it, it prunes the one with the smallest
    :math:`|W_{ij}| \lVert X_j \rVert`. An output stops once :math:`|e_i|` is at most
    ``threshold``, or a swap would not lower it. A weight is swapped at most once. With
    N:M, both weights of a swap belong to the same group.

    The paper stops an output where the sign of its error would change, and does not
    refine the MLPs. Here they are refined too, unless ``prunable`` excludes them.

    Args:
      method: the method whose mask is refined, such as ``jp.by_score(jp.wanda)``. Its
        new weights, if it makes any, are not used.
      cycles: the maximum number of swaps of an output.
      threshold: the error that is small enough, in units of the layer's outputs.

    Returns:
      A method with the signature of `sparse_gpt`; kept weights do not change.

    Raises:
      ValueError: if ``cycles`` is not a whole number, at least 1, or ``threshold`` is
        negative.
      TypeError: if ``method`` cannot be called, or ``threshold`` is not a number.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, 1.1, -1.2, 1.3]]).T}
      >>> x = jnp.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
      >>> fn = lambda params, x: x @ params["w"]
      >>> refined = jp.dsnot(jp.by_score(jp.wanda))
      >>> for method in (jp.by_score(jp.wanda), refined):
      ...     print(method(fn, params, [x], sparsity=0.5)[0]["w"].T)
      [[ 0.   0.  -1.2  1.3]]
      [[0.  1.1 0.  1.3]]

    References:
      Zhang et al., `Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse
      LLMs <https://arxiv.org/abs/2310.08915>`_, ICLR 2024, Section 3.
    """
    _checks.check_callable(method, "method", "such as jp.by_score(jp.wanda)")
    cycles = _checks.static_count(cycles, "cycles", "swaps of an output")
    if not _checks.is_python_number(threshold):
        raise TypeError(
            f"threshold must be a number; got {_checks.described(threshold)}."
        )
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0; got {threshold}.")

    rule = _rule(cycles, float(threshold))

    def refined(
        fn: Callable[..., Any],
        params: Params,
        batches: Iterable[Any],
        *,
        sparsity: Any = None,
        n_m: tuple[int, int] | None = None,
        prior: Mask | None = None,
        prunable: Prunable | None = None,
    ) -> tuple[Params, Mask]:
        _checks.check_batches(batches)
        batches = list(batches)
        options: dict[str, Any] = {"sparsity": sparsity, "n_m": n_m, "prior": prior}
        options["prunable"] = prunable
        _, mask = method(fn, params, batches, **options)
        return prune_layers(rule, fn, params, batches, start=mask, **options)

    return refined


@functools.lru_cache
def _rule(cycles: int, threshold: float) -> Rule:
    def solve(matrix: Matrix, found: jax.Array, keep: Any, n_m: Any) -> Any:
        del keep
        group = None if n_m is None else n_m[1]
        return matrix.weights, _refined(matrix, found, group, cycles, threshold)

    return Rule(_moments, lambda moments: moments, solve, lambda *_: [0])


def _moments(x: jax.Array, batch: int, inputs: int) -> jax.Array:
    """The sum, the sum of squares and the number of tokens, for every input."""
    tokens = range(batch, x.ndim - inputs)
    sums = [jnp.sum(x, axis=tokens), jnp.sum(jnp.square(x), axis=tokens)]
    sums += [jnp.full_like(sums[0], x.size // sums[0].size)]
    found, _ = replicate(jnp.stack(sums, axis=batch))
    return found.reshape(*found.shape[: batch + 1], -1)


def _refined(
    matrix: Matrix,
    moments: jax.Array,
    group: int | None,
    cycles: int,
    threshold: float,
) -> jax.Array:
    total, squares, tokens = moments
    mean = total / tokens
    variance = jnp.maximum(squares / tokens - jnp.square(mean), 1e-12)
    gains = matrix.weights * mean[None]
    urgent = jnp.abs(gains) / variance[None]
    scores = jnp.abs(matrix.weights) * jnp.sqrt(squares)[None]
    start = matrix.start & matrix.allowed
    index = jnp.arange(gains.shape[1])

    def body(state: tuple) -> tuple:
        cycle, mask, lost, on = state
        helps = jnp.sign(lost)[:, None] * gains  # Above 0: to be grown.
        grow = ~start & ~mask & matrix.allowed & (helps > 0)
        prune = start & mask & (helps < 0)
        if group is not None:  # A group must have one of each.
            both = [_in_groups(x, group) for x in (grow, prune)]
            grow, prune = grow & both[1], prune & both[0]
        g = jnp.argmax(jnp.where(grow, urgent, -1), axis=1)
        if group is not None:
            prune &= (index // group)[None] == (g // group)[:, None]
        p = jnp.argmin(jnp.where(prune, scores, jnp.inf), axis=1)
        grown, pruned = index[None] == g[:, None], index[None] == p[:, None]
        change = jnp.sum(jnp.where(pruned, gains, 0) - jnp.where(grown, gains, 0), 1)
        on &= jnp.any(grow, 1) & jnp.any(prune, 1)
        on &= (jnp.abs(lost) > threshold) & (jnp.abs(lost + change) < jnp.abs(lost))
        swap = on[:, None]
        mask = (mask | (grown & swap)) & ~(pruned & swap)
        return cycle + 1, mask, jnp.where(on, lost + change, lost), on

    def goes_on(state: tuple) -> jax.Array:
        return (state[0] < cycles) & jnp.any(state[-1])

    lost = jnp.sum(jnp.where(start, 0, gains), axis=1)
    state = jnp.int32(0), start, lost, lost == lost
    return jax.lax.while_loop(goes_on, body, state)[1]


def _in_groups(x: jax.Array, group: int) -> jax.Array:
    """Marks the groups, of consecutive columns, in which something is marked."""
    found = jnp.any(x.reshape(len(x), -1, group), axis=-1, keepdims=True)
    return jnp.broadcast_to(found, (len(x), found.shape[1], group)).reshape(x.shape)
