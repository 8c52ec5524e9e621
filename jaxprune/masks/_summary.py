"""Reports on a mask: its sparsity as one number, or a table of all leaves."""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Mask, Params, Prunable
from jaxprune.core import _checks, _tables, _uint64
from jaxprune.core._axes import FLAX, Axes, axes_of, numbered
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.masks import _counting

_SCALES = ("scale", "gamma")  # Names of leaves that scale activations, or shift them.
_SHIFTS = ("bias", "beta", "offset")
_HEADER = ("path", "shape", "prunable", "kept", "size", "sparsity")
_WORDS = 3  # The columns of _HEADER before the numbers.


def sparsity(
    mask: Mask, params: Params | None = None, *, prunable: Prunable = matrices
) -> jax.Array:
    r"""Measures the fraction of weights that a mask removes.

    With :math:`|m|` the number of weights and :math:`\|m\|_0` the number kept,

    .. math:: s = (|m| - \|m\|_0) \, / \, |m| .

    Without ``params``, all leaves count. With ``params``, the prunable leaves count, as
    in the argument ``sparsity`` of `jaxprune.global_mask`. Counts are exact up to
    :math:`2^{44}` weights, and the quotient is within one unit in the last place. It
    works under ``jit``, so a training step can log the sparsity of the mask in its
    optimizer state.

    Args:
      mask: a tree of bool, True = kept.
      params: the parameters, or their ``jax.ShapeDtypeStruct``, for ``prunable``.
      prunable: which leaves of ``params`` count; ignored without ``params``.

    Returns:
      A float32 scalar array in [0, 1]: exactly 0 if all weights are kept, and 1 if none
      are.

    Raises:
      TypeError: if a leaf of ``mask`` is not bool.
      ValueError: if ``mask`` and ``params`` differ in structure or shapes, if nothing
        is prunable, or if there are no weights to count.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}
      >>> mask = {"kernel": jnp.arange(8).reshape(2, 4) < 2, "bias": jnp.ones(4, bool)}
      >>> print(jp.sparsity(mask), jp.sparsity(mask, params))
      0.5 0.75
    """
    _checks.check_mask(mask, mask if params is None else params)
    leaves = jax.tree.leaves(mask)
    if params is not None:
        flags = select_prunable(params, prunable)
        leaves = [m for m, flag in zip(leaves, flags, strict=True) if flag]
    leaves = [jnp.asarray(m) for m in leaves if np.size(m)]
    if not leaves:
        raise ValueError(
            "The mask has no weights to count: it has no leaves, or only empty ones. "
            "Pass a mask that a function such as jp.global_mask returned."
        )
    kept = _uint64.sum_of(_counting.count_true(leaves))
    size = sum(leaf.size for leaf in leaves)
    removed = _uint64.to_float(_uint64.subtract(_uint64.wide(size), kept))
    # XLA multiplies by the reciprocal of a constant, so 41 / 41 is not exactly 1.
    nothing = (kept.high | kept.low) == 0
    return jnp.where(nothing, jnp.float32(1), removed / jnp.float32(size))


def summary(
    params: Params,
    mask: Mask,
    *,
    prunable: Prunable = matrices,
    axis: Axes | None = None,
) -> "Summary":
    """Counts the kept weights of each leaf, and warns of layers that are cut off.

    The result prints as a table, and holds exact Python numbers. It warns of leaves
    that keep no weight (layer collapse), of dead units, the outputs of a layer whose
    incoming weights are all pruned, and of pruned leaves whose names say that they
    scale or shift activations. It also warns if no prunable weight is removed, for
    example because a training run was shorter than the period ``every`` of `gradual`.

    Args:
      params: any pytree of arrays, or their ``jax.ShapeDtypeStruct``.
      mask: a concrete tree of bool with the structure and shapes of ``params``, True =
        kept.
      prunable: which leaves may be pruned; the first of the two totals counts these.
      axis: the input axes, as in `row_mask`, to find dead units. By default they are
        counted only for leaves called ``kernel``, in Flax's layout.

    Returns:
      A `Summary`. In a notebook it is shown as an HTML table.

    Raises:
      TypeError: if a leaf of ``mask`` is not bool, or has no concrete values, as inside
        ``jit``.
      ValueError: if ``mask`` and ``params`` differ in structure or shapes, or if
        nothing is prunable.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}
      >>> mask = {"kernel": jnp.arange(8).reshape(2, 4) < 2, "bias": jnp.ones(4, bool)}
      >>> print(jp.summary(params, mask))
      path      shape   prunable  kept  size  sparsity
      ------------------------------------------------
      bias      (4,)    no           4     4    0.0000
      kernel    (2, 4)  yes          2     8    0.7500
      ------------------------------------------------
      prunable                       2     8    0.7500
      all                            6    12    0.5000
      Warning: kernel: 2 of 4 units have no incoming weight left (dead units).
      >>> jp.summary(params, mask).prunable
      Total(kept=2, size=8, sparsity=0.75)
    """
    _checks.check_mask(mask, params)
    check_concrete(mask, "summary")
    flags = select_prunable(params, prunable)
    leaves, paths = jax.tree.leaves(mask), _checks.leaf_paths(mask)
    inputs = [
        axes if flag else None
        for axes, flag in zip(_inputs(axis, params), flags, strict=True)
    ]
    dead = _dead_units([(m, i) for m, i in zip(leaves, inputs, strict=True) if i])
    rows, warnings = [], []
    for path, leaf, flag, kept, axes in zip(
        paths, leaves, flags, kept_counts(mask), inputs, strict=True
    ):
        shape = tuple(np.shape(leaf))
        total = _total([(kept, int(np.size(leaf)))])
        rows.append(Row(path, shape, flag, *total, dead.pop(0) if axes else 0))
        units = math.prod(n for i, n in enumerate(shape) if i not in (axes or ()))
        warnings += _warnings(rows[-1], units)
    prunable_total = _total([(row.kept, row.size) for row in rows if row.prunable])
    if prunable_total.kept == prunable_total.size:
        warnings.append("no prunable weight is removed.")
    return Summary(
        rows=tuple(rows),
        prunable=prunable_total,
        total=_total([(row.kept, row.size) for row in rows]),
        warnings=tuple(warnings),
    )


class Row(NamedTuple):
    """One leaf of a `Summary`.

    Attributes:
      path: the path of the leaf, such as ``layers/0/kernel``.
      shape: the shape of the leaf.
      prunable: whether the leaf may be pruned.
      kept: the number of weights kept.
      size: the number of weights.
      sparsity: the fraction of weights removed; 0.0 for an empty leaf.
      dead_units: the number of outputs whose incoming weights are all pruned; 0 for
        leaves that may not be pruned or whose input axes are unknown.
    """

    path: str
    shape: tuple[int, ...]
    prunable: bool
    kept: int
    size: int
    sparsity: float
    dead_units: int


class Total(NamedTuple):
    """Counts over several leaves: weights kept, all weights, the fraction removed."""

    kept: int
    size: int
    sparsity: float


class Summary(NamedTuple):
    """The kept weights of every leaf, which print as a table; see `summary`.

    Attributes:
      rows: a `Row` for every leaf, in leaf order.
      prunable: the `Total` over the prunable leaves.
      total: the `Total` over all leaves.
      warnings: a sentence for every leaf that is emptied, has dead units, or is a
        pruned scale or bias by its name, and if no prunable weight is removed.
    """

    rows: tuple[Row, ...]
    prunable: Total
    total: Total
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        """Writes the table, the totals and the warnings."""
        lines = _tables.as_text(self._lines(), words=_WORDS)
        rule = "-" * max(map(len, lines))
        table = [lines[0], rule, *lines[1:-2], rule, *lines[-2:]]
        return "\n".join(table + [f"Warning: {warning}" for warning in self.warnings])

    def _repr_html_(self) -> str:
        """Writes the same as HTML, for notebooks."""
        table = _tables.as_html(self._lines(), words=_WORDS, totals=2)
        warnings = [f"<p>Warning: {html.escape(w)}</p>" for w in self.warnings]
        return "".join([table, *warnings])

    def _lines(self) -> list[tuple[str, ...]]:
        body = [
            (row.path, str(row.shape), "yes" if row.prunable else "no", *_numbers(row))
            for row in self.rows
        ]
        return [
            _HEADER,
            *body,
            ("prunable", "", "", *_numbers(self.prunable)),
            ("all", "", "", *_numbers(self.total)),
        ]


def kept_counts(mask: Any) -> list[int]:
    """Counts the kept weights of every leaf of a concrete mask, exactly."""
    leaves = [jnp.asarray(m) for m in jax.tree.leaves(mask)]
    if not leaves:
        return []
    counts = jax.device_get(_counting.count_true(leaves))
    return [_uint64.to_int(_uint64.Wide(*n)) for n in zip(*counts, strict=True)]


def check_concrete(mask: Any, function: str) -> None:
    """Raises unless every leaf of a mask is concrete."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if not _checks.is_concrete(leaf):
            raise TypeError(
                f"{function} counts the kept weights, so it needs concrete masks, but "
                f"the leaf {_checks.path_str(path)} is a {type(leaf).__name__} without "
                f"values. Call {function} outside jit and other transformations. "
                "Inside, jp.sparsity(mask, params) returns the fraction removed."
            )


def _inputs(axis: Any, params: Any) -> list[Any]:
    """The input axes of each leaf, or None where they are unknown."""
    paths, leaves = _checks.leaf_paths(params), jax.tree.leaves(params)
    entries = axes_of(FLAX if axis is None else axis, params)
    if axis is None:
        kernel = [
            path.removesuffix("/value").split("/")[-1] == "kernel" for path in paths
        ]
        entries = [e if k else None for e, k in zip(entries, kernel, strict=True)]
    return [
        None if e in (None, FLAX) or np.ndim(p) < 2 else numbered(e, path, np.shape(p))
        for e, p, path in zip(entries, leaves, paths, strict=True)
    ]


def _dead_units(masks: list[tuple[Any, tuple[int, ...]]]) -> list[int]:
    """Counts, leaf by leaf, the outputs that keep no weight of their inputs."""
    leaves, axes = [m for m, _ in masks], tuple(a for _, a in masks)
    if _checks.on_host(leaves):
        return [int(_dead(np, np.asarray(leaf), a)) for leaf, a in masks]
    return [int(n) for n in jax.device_get(_all_dead(leaves, axes))]


@jax.jit(static_argnums=1)
def _all_dead(leaves: list[Any], axes: tuple[tuple[int, ...], ...]) -> list[Any]:
    return [_dead(jnp, leaf, a) for leaf, a in zip(leaves, axes, strict=True)]


def _dead(numpy: Any, leaf: Any, axes: tuple[int, ...]) -> Any:
    return numpy.sum(~numpy.any(leaf, axis=axes), dtype=numpy.int32)


def _total(counts: Sequence[tuple[int, int]]) -> Total:
    kept, size = (sum(column) for column in zip((0, 0), *counts, strict=True))
    return Total(kept, size, (size - kept) / size if size else 0.0)


def _warnings(row: Row, units: int) -> list[str]:
    if row.size and not row.kept:
        return [f"{row.path}: no weight is kept (layer collapse)."]
    found = []
    if row.dead_units:
        found.append(
            f"{row.path}: {row.dead_units:,} of {units:,} units have no incoming "
            "weight left (dead units)."
        )
    name = row.path.removesuffix("/value").split("/")[-1]
    vectors = len(row.shape) > 1 and name in _SHIFTS
    if row.prunable and row.kept < row.size and (name in _SCALES or vectors):
        found.append(
            f"{row.path}: it is pruned, but its name says that it is a {name} of "
            "activations. If it is a stack of vectors, leave it out with "
            "prunable=jp.stacked(pattern), otherwise with jp.by_path(pattern)."
        )
    return found


def _numbers(row: Row | Total) -> tuple[str, str, str]:
    return f"{row.kept:,}", f"{row.size:,}", f"{row.sparsity:.4f}"
