"""SparseGPT: prunes every layer, and the remaining weights compensate."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxprune._types import Mask, Params, Prunable
from jaxprune.core import _checks
from jaxprune.core._placement import is_cut, uncut
from jaxprune.post_training._layers import Rule, check_amount, prune_layers
from jaxprune.post_training._obs import factor, solve


def sparse_gpt(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    *,
    sparsity: Any = None,
    n_m: tuple[int, int] | None = None,
    prior: Mask | None = None,
    prunable: Prunable | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> tuple[Params, Mask]:
    r"""Prunes each layer so that its outputs on the calibration data change little.

    For a layer :math:`y = W x` with inputs :math:`X` and
    :math:`H = X X^\top + \lambda I`, :math:`\lambda` a fraction of H's mean diagonal,
    and :math:`U` the upper Cholesky factor of :math:`H^{-1}`, columns are visited in
    order. In each block of columns, the weights with the smallest
    :math:`w^2 / U_{jj}^2` are pruned. The row of U then spreads each column's error
    :math:`w / U_{jj}` over the later columns.

    The number of pruned weights is exact in each block, over all outputs; the authors'
    code also prunes ties. With N:M, ``n`` of every ``m`` consecutive inputs are kept,
    chosen when their first column is visited. H is a sum and not a mean, which does not
    change the result. Weights of inputs that are always 0 are pruned first, the
    smallest first; the paper sets them all to 0.

    The inputs are found as `wanda` finds them, in one pass: all layers see the inputs
    of the network before pruning, as the layers of one block do in the paper. All
    products are in memory at once, one for each array that layers read. For a large
    network, use `prune_blocks`, which prunes each block on the outputs of the pruned
    blocks before it.

    Args:
      fn: ``fn(params, batch)``, the forward pass; what it returns is not read.
      params: any pytree of floating arrays. Weights that are 0 stay 0.
      batches: the calibration data, read once; ``fn`` is called with each batch.
      sparsity: fraction of the weights of each block removed, in [0, 1): a number, or a
        tree of numbers like ``params``, or a prefix of one.
      n_m: instead of ``sparsity``, the pair (n, m): n of every m inputs are kept.
      prior: a mask. Weights that it prunes stay pruned and count toward ``sparsity``.
      prunable: which leaves take part; the others are kept whole. By default, those
        that a matrix product or convolution contracts with activations and that have no
        other use, such as a lookup. Leaves that scale activations or are added to them
        never take part.
      block: columns whose weights are compared with one another, at least 1; with N:M
        a multiple of m.
      damping: the number added to H's diagonal, as a fraction of its mean; above 0.

    Returns:
      The parameters with new weights and the mask, which is False exactly where a
      prunable leaf is 0. Both have the structure, shapes and shardings of ``params``.
      On an Explicit mesh a leaf is gathered while it is pruned. Layers whose inputs
      were always 0 are pruned by magnitude, with a warning.

    Raises:
      ValueError: if neither or both of ``sparsity`` and ``n_m`` are given, an option is
        out of range, there are no batches, or a prunable leaf has no inputs or a number
        of inputs that is not a multiple of m; outside ``jit``, if the inputs are not
        finite, or their products have no Cholesky factor.
      TypeError: if a leaf is not floating, or ``damping`` is not a number.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0], [3.0]])}
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0]])  # The inputs are always equal.
      >>> params, mask = jp.sparse_gpt(
      ...     lambda p, x: x @ p["w"], params, [x], sparsity=0.5, damping=1e-4
      ... )
      >>> params["w"].round(2)  # The kept weight does the work of both.
      Array([[0.],
             [4.]], dtype=float32)

    References:
      Frantar & Alistarh, `SparseGPT: Massive Language Models Can be Accurately Pruned
      in One-Shot <https://arxiv.org/abs/2301.00774>`_, ICML 2023, Algorithm 1.
    """
    block = _checks.static_count(block, "block", "columns")
    _, pattern = check_amount(params, sparsity, n_m)
    if pattern is not None and block % pattern[1]:
        raise ValueError(
            f"block must be a multiple of m, so that no group is cut; got "
            f"block={block} and m={pattern[1]}."
        )
    return prune_layers(
        _rule(block, check_damping(damping)),
        fn,
        params,
        batches,
        sparsity=sparsity,
        n_m=n_m,
        prior=prior,
        prunable=prunable,
    )


@functools.cache
def _rule(block: int, damping: float) -> Rule:
    """Cached, so that all blocks use the same rule and its compiled programs."""
    return Rule(
        products,
        functools.partial(factor, damping),
        functools.partial(solve, block),
        functools.partial(_counts, block),
    )


def products(x: jax.Array, batch: int, inputs: int) -> jax.Array:
    """The products of all pairs of inputs."""
    rows, tokens = (*range(batch),), (*range(batch, x.ndim - inputs),)
    sharding = jax.typeof(x).sharding
    found = jax.lax.dot_general(
        x,
        x,
        ((tokens, tokens), (rows, rows)),
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=uncut(sharding) if is_cut(sharding) else None,
    )
    width = math.prod(x.shape[x.ndim - inputs :])
    return found.reshape(*x.shape[:batch], width, width)


def _counts(block: int, sparsity: float, outputs: int, inputs: int) -> list[int]:
    sizes = [block * outputs, inputs % block * outputs]
    return [size - round(sparsity * size) for size in sizes]


def check_damping(damping: Any) -> float:
    """Reads a damping; raises unless it is a number above 0."""
    if not _checks.is_python_number(damping):
        raise TypeError(
            "damping must be a number above 0, such as 0.01; got "
            f"{_checks.described(damping)}."
        )
    if not 0 < damping < math.inf:
        raise ValueError(
            f"damping must be a finite number above 0, such as 0.01; got {damping}."
        )
    return float(damping)
