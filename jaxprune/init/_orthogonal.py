"""Sparse initialisations that are exactly orthogonal."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Mask, Params, Prunable, Real
from jaxprune.core import _checks
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.masks._threshold import broadcast_sparsity, layerwise_mask
from jaxprune.transforms._state import copied_like


def exact_orthogonal_init(
    key: jax.Array,
    params: Params,
    sparsity: Any,
    *,
    gain: Real = 1.0,
    prunable: Prunable = matrices,
) -> tuple[Params, Mask]:
    r"""Draws sparse weights that are orthogonal from the start, with their mask (EOI).

    A kernel of :math:`m \times n` becomes a product of Givens rotations, each in a
    random plane and by a random angle, on a randomly permuted identity,

    .. math:: W = \sigma_w \, G_{i_1 j_1}(\varphi_1) \cdots G_{i_r j_r}(\varphi_r) \, P,

    on its longer side, so :math:`W^\top W` or :math:`W W^\top`, whichever is smaller,
    is :math:`\sigma_w^2 I` to rounding. Rotations fill the matrix, and stop before the
    first that would keep more weights than ``sparsity`` leaves. In a kernel with taps,
    (H, W, I, O), that is the central tap, all others are 0 (delta-orthogonal): with
    ``"SAME"`` or circular padding and :math:`I \le O` the layer preserves norms. Of a
    kernel of density d over k taps the central tap takes up to :math:`\sqrt{d}\,I O`
    weights, as in the authors' code.

    What is exact: the orthogonality, to rounding, and the mask's count, that of
    `layerwise_mask`. The weights that rotations did not reach are drawn at random among
    those left; they start at 0 and are free to train. The authors do so for taps; we do
    so for matrices too, where they overshoot by part of a rotation. The permutation is
    ours, lest a long side's first rows be preferred.

    The method draws its own mask. For a mask at hand no such weights need exist: two
    columns that share a single row cannot be orthogonal unless one gives it up. What
    can be kept of a mask is its count in every leaf: pass
    ``jax.tree.map(lambda m: 1 - m.mean(dtype=float).item(), mask)`` as ``sparsity``.

    Args:
      key: a JAX random key.
      params: a tree of floating arrays; shapes, dtypes and placement are read, and the
        values of leaves that are not prunable. The last two axes of a leaf are a
        matrix, those before them taps: leave out grouped convolutions and stacked or
        split layers, whose axes mean something else.
      sparsity: fraction removed, in [0, 1), known while tracing: a number for all
        leaves, or a tree of numbers, such as `erk` returns.
      gain: :math:`\sigma_w`; 2**0.5 makes up for a ReLU.
      prunable: which leaves are drawn anew; the others stay, whole.

    Returns:
      ``(params, mask)`` with the structure, shapes, dtypes and shardings of ``params``.
      Half precision is drawn in float32 and rounded.

    Raises:
      ValueError: if a sparsity is not in [0, 1) or leaves fewer weights than the
        shorter side is long, a leaf has fewer than two axes, the tree of sparsities
        does not match, or nothing is prunable.
      TypeError: if a leaf is not floating, a sparsity is traced, or ``key`` is no key.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> params = {"kernel": jnp.zeros((8, 6)), "bias": jnp.zeros(6)}
      >>> params, mask = jp.exact_orthogonal_init(jax.random.key(0), params, 0.75)
      >>> w = params["kernel"]
      >>> bool(jnp.allclose(w.T @ w, jnp.eye(6), atol=1e-6)), int(mask["kernel"].sum())
      (True, 12)

    References:
      Nowak et al., `Sparser, Better, Deeper, Stronger: Improving Static Sparse Training
      with Exact Orthogonal Initialization <https://arxiv.org/abs/2406.01755>`_, ICML
      2024; the split between taps is that of the authors' code.
    """
    _checks.check_key(key)
    if not _checks.is_python_number(gain) or not 0 < gain < np.inf:
        raise ValueError(
            f"gain must be a number above 0, such as 2**0.5; got {gain!r}."
        )
    _checks.check_floating(params, "params")
    flags = select_prunable(params, prunable)
    leaves, structure = jax.tree.flatten(params)
    targets = iter(broadcast_sparsity(sparsity, params, flags))
    weights, scores, sparsities = [], [], []
    for i, (path, leaf) in enumerate(
        zip(_checks.leaf_paths(params), leaves, strict=True)
    ):
        if not flags[i]:
            weights.append(leaf)
            scores.append(jnp.zeros_like(leaf))
            sparsities.append(0.0)
            continue
        target = _checks.static_sparsity(next(targets), "exact_orthogonal_init", path)
        draw, fill = jax.random.split(jax.random.fold_in(key, i))
        kernel = _drawn(draw, jnp.shape(leaf), _central_count(leaf, target, path))
        noise = jax.random.uniform(fill, kernel.shape)
        weights.append(copied_like((gain * kernel).astype(leaf.dtype), leaf))
        scores.append(copied_like(jnp.where(kernel != 0, jnp.inf, noise), leaf))
        sparsities.append(target)
    mask = layerwise_mask(
        structure.unflatten(scores),
        structure.unflatten(sparsities),
        prunable=structure.unflatten(flags),
    )
    return structure.unflatten(weights), mask


def _central_count(leaf: Any, sparsity: float, path: str) -> int:
    """How many weights the central tap may keep."""
    shape = jnp.shape(leaf)
    if len(shape) < 2:
        raise ValueError(
            f"The leaf {path} of shape {shape} is no matrix: an orthogonal one needs "
            "two axes. The default, prunable=jp.matrices, leaves it out."
        )
    size, shorter = math.prod(shape), min(shape[-2:])
    kept = size - round(sparsity * size)
    if kept < shorter:
        raise ValueError(
            f"The leaf {path} of shape {shape} keeps {kept} of {size} weights at "
            f"sparsity {sparsity:.6g}, but to be orthogonal it needs {shorter}, one "
            "for each entry of its shorter side. Prune it less, or leave it out with "
            "prunable."
        )
    central = int(math.sqrt(kept / size) * shape[-2] * shape[-1])
    return max(min(kept, central), shorter)


class _Filling(NamedTuple):
    """A matrix on its way from a permutation to its density."""

    key: jax.Array
    matrix: jax.Array  # Its longer side first.
    kept: jax.Array  # How many entries are not 0.
    full: jax.Array  # Whether the last rotation would have kept too many.


@functools.partial(jax.jit, static_argnums=1)
def _drawn(key: jax.Array, shape: tuple[int, ...], count: Any) -> jax.Array:
    """Draws a kernel whose central tap is orthogonal, of up to ``count`` entries."""
    *taps, rows, columns = shape
    matrix = _rotated(key, max(rows, columns), min(rows, columns), count)
    matrix = matrix if rows >= columns else matrix.T
    # The tap that "SAME" padding puts on the output's own position.
    centre = tuple((size - 1) // 2 for size in taps)
    return jnp.zeros(shape, jnp.float32).at[centre].set(matrix)


def _rotated(key: jax.Array, rows: int, columns: int, count: Any) -> jax.Array:
    r"""Rotates pairs of rows of a permutation until ``count`` entries would be passed.

    Rows a and b become :math:`a \cos\varphi - b \sin\varphi` and
    :math:`a \sin\varphi + b \cos\varphi`: both get the union of their supports.
    """
    key, shuffle = jax.random.split(key)
    matrix = jax.random.permutation(shuffle, jnp.eye(rows, columns))

    def pending(state: _Filling) -> jax.Array:
        return (state.kept < count) & ~state.full

    def rotate(state: _Filling) -> _Filling:
        key, *keys = jax.random.split(state.key, 4)
        i = jax.random.randint(keys[0], (), 0, rows)
        j = (i + jax.random.randint(keys[1], (), 1, rows)) % rows
        angle = jax.random.uniform(keys[2], maxval=2 * math.pi)
        a, b = state.matrix[i], state.matrix[j]
        a_filled, b_filled = a != 0, b != 0
        kept = state.kept + jnp.sum(a_filled ^ b_filled)
        full = kept > count
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        matrix = state.matrix.at[i].set(jnp.where(full, a, cos * a - sin * b))
        matrix = matrix.at[j].set(jnp.where(full, b, sin * a + cos * b))
        return _Filling(key, matrix, jnp.where(full, state.kept, kept), full)

    start = _Filling(key, matrix, jnp.int32(columns), jnp.bool_(False))
    return jax.lax.while_loop(pending, rotate, start).matrix
