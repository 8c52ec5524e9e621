"""Sparse initialization with exactly orthogonal weights."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxprune._types import Key, Mask, Params, Prunable, Real
from jaxprune.core import _checks
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.masks._threshold import broadcast_sparsity, layerwise_mask
from jaxprune.transforms._state import copied_like


def exact_orthogonal_init(
    key: Key,
    params: Params,
    sparsity: PyTree[Real],
    *,
    gain: Real = 1.0,
    prunable: Prunable = matrices,
) -> tuple[Params, Mask]:
    r"""Draws sparse, orthogonal initial weights and their mask (EOI).

    An :math:`m \times n` kernel is a product of Givens rotations, in random planes and
    by random angles, applied to a randomly permuted identity P:

    .. math:: W = \sigma_w \, G_{i_1 j_1}(\varphi_1) \cdots G_{i_r j_r}(\varphi_r) \, P.

    The smaller of :math:`W^\top W` and :math:`W W^\top` is :math:`\sigma_w^2 I` up to
    rounding. Every rotation fills in entries; they stop before the first that would
    exceed the number of weights to keep. In a kernel of shape (H, W, I, O) the central
    tap is such a matrix and all other taps are 0 (delta-orthogonal), so with ``"SAME"``
    or circular padding and :math:`I \le O` the layer preserves norms. At density d the
    central tap gets at most :math:`\sqrt{d}\,I O` weights, as in the authors' code.

    In each leaf, the mask keeps the same number of weights as `layerwise_mask`. The
    weights that the rotations did not fill are chosen at random; they start at 0 and
    are trained. The authors do this for taps only, and overshoot the count of matrices
    by part of a rotation. They do not permute the identity; we do, so that no rows of
    the longer side are preferred.

    The mask cannot be chosen: orthogonal weights do not exist for every mask. (Two
    columns that overlap in a single row are not orthogonal.) To keep the counts of a
    given mask, pass ``jax.tree.map(lambda m: 1 - m.mean(dtype=float).item(), mask)`` as
    ``sparsity``.

    Args:
      key: a JAX random key.
      params: a tree of floating arrays. Only shapes, dtypes and shardings of prunable
        leaves are read. Their last two axes are a matrix, and the axes before those are
        taps. Exclude grouped convolutions and layers that are stacked or split into
        heads, whose axes mean something else.
      sparsity: fraction of each leaf removed, in [0, 1), a Python number for all leaves
        or a tree of numbers, such as `erk` returns.
      gain: :math:`\sigma_w`; use 2**0.5 before a ReLU.
      prunable: which leaves are drawn; the remaining leaves are returned unchanged,
        with a mask of all True.

    Returns:
      ``(params, mask)`` with the structure, shapes and shardings of ``params``. Half
      precision is drawn in float32 and rounded.

    Raises:
      ValueError: if a sparsity is not in [0, 1) or keeps fewer weights than the shorter
        side has entries, a prunable leaf has fewer than two axes, the tree of
        sparsities does not match ``params``, or nothing is prunable.
      TypeError: if a leaf is not floating, a sparsity is traced, or ``key`` is not a
        random key.

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
      2024, and the authors' code for the split between taps.
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
    """Returns how many weights the central tap may keep."""
    shape = jnp.shape(leaf)
    if len(shape) < 2:
        raise ValueError(
            f"The leaf {path} of shape {shape} has fewer than two axes, so it cannot "
            "be orthogonal. The default, prunable=jp.matrices, excludes it."
        )
    size, shorter = math.prod(shape), min(shape[-2:])
    kept = size - round(sparsity * size)
    if kept < shorter:
        raise ValueError(
            f"The leaf {path} of shape {shape} keeps {kept} of {size} weights at "
            f"sparsity {sparsity:.6g}, but an orthogonal matrix needs at least "
            f"{shorter}, the length of its shorter side. Lower the sparsity, or "
            "exclude the leaf with prunable=."
        )
    central = int(math.sqrt(kept / size) * shape[-2] * shape[-1])
    return max(min(kept, central), shorter)


class _Filling(NamedTuple):
    """The state of the rotations."""

    key: jax.Array
    matrix: jax.Array  # Its longer side first.
    kept: jax.Array  # The number of non-zero entries.
    full: jax.Array  # Whether the last rotation would have exceeded the count.


@functools.partial(jax.jit, static_argnums=1)
def _drawn(key: jax.Array, shape: tuple[int, ...], count: Any) -> jax.Array:
    """Draws a kernel whose central tap is orthogonal with up to ``count`` entries."""
    *taps, rows, columns = shape
    matrix = _rotated(key, max(rows, columns), min(rows, columns), count)
    matrix = matrix if rows >= columns else matrix.T
    # The tap that "SAME" padding aligns with the output position.
    center = tuple((size - 1) // 2 for size in taps)
    return jnp.zeros(shape, jnp.float32).at[center].set(matrix)


def _rotated(key: jax.Array, rows: int, columns: int, count: Any) -> jax.Array:
    r"""Rotates pairs of rows of a permutation up to ``count`` non-zero entries.

    Rows a and b become :math:`a \cos\varphi - b \sin\varphi` and
    :math:`a \sin\varphi + b \cos\varphi`, so both get the union of their supports.
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
