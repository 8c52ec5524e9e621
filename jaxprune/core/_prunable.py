"""Which leaves may be pruned: functions of a tree to a tree of Python bools.

They read paths, shapes and dtypes only, so they accept parameters, scores, tracers and
``jax.ShapeDtypeStruct``. They are never called with a mask.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxprune._types import Params, Prunable
from jaxprune.core import _checks
from jaxprune.core._axes import FLAX, Axes, axes_of, check_axes, numbered


def matrices(params: Params) -> Any:
    """Selects weight matrices and kernels: floating leaves of rank two or more.

    Biases, normalization scales and scalars stay dense. This is the default of every
    ``prunable`` argument.

    Args:
      params: any pytree of arrays, tracers or ``jax.ShapeDtypeStruct``.

    Returns:
      A tree of Python bools with the structure of ``params``.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> jp.matrices({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
      {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda p: _checks.is_floating(p) and p.ndim >= 2, params)


def by_path(pattern: str) -> Prunable:
    """Selects the floating leaves, of any rank, whose path matches a pattern.

    The path is ``jax.tree_util.keystr(path, simple=True, separator="/")``, such as
    ``layers/0/kernel``. Paths in an ``nnx.State`` end in ``/value``.

    Args:
      pattern: a regular expression, searched for anywhere in the path (`re.search`).

    Returns:
      A function ``prunable(params)`` that returns a tree of Python bools.

    Raises:
      TypeError: if ``pattern`` is not a string.
      ValueError: if it is not a valid regular expression.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"stem": {"kernel": jnp.zeros((3, 4))}, "head": jnp.zeros((4, 2))}
      >>> jp.by_path("^stem/.*kernel")(params)
      {'head': False, 'stem': {'kernel': True}}
    """
    search = compiled(pattern).search

    def prunable(params: Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, p: (
                _checks.is_floating(p) and search(_checks.path_str(path)) is not None
            ),
            params,
        )

    return prunable


def compiled(pattern: str) -> re.Pattern[str]:
    """Compiles a regular expression for paths; raises if it is none."""
    what = "pattern must be a regular expression to search for in paths"
    if not isinstance(pattern, str | re.Pattern):
        raise TypeError(
            f"{what}, such as 'stem|head'; got {_checks.described(pattern)}."
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{what}; got {pattern!r}: {error}. To match a path literally, use "
            "re.escape(path)."
        ) from error


def divisible_by(m: int | Sequence[int], *, axis: Axes = FLAX) -> Prunable:
    """Selects the matrices whose inputs can be cut into groups of ``m``.

    Use it for N:M and block sparsity. The remaining leaves stay dense, and
    `jaxprune.summary` lists them as not prunable.

    Args:
      m: the size of a group, at least 1; or one size for each of several axes, for
        blocks.
      axis: the input axes, as in `n_m_mask`; together they must be a multiple of ``m``.
        Leaves without an entry are not selected. With several sizes, the axis of each.

    Returns:
      A function ``prunable(params)`` that returns a tree of Python bools.

    Raises:
      ValueError: if ``m`` is not a whole number of at least 1, or the numbers of sizes
        and axes differ.
      TypeError: if an axis is not an integer, or a size is traced.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"stem": jnp.zeros((3, 8)), "body": jnp.zeros((8, 8))}
      >>> jp.divisible_by(4)(params)
      {'body': True, 'stem': False}
      >>> jp.divisible_by((1, 8), axis=(-2, -1))(params)
      {'body': True, 'stem': True}
    """
    if isinstance(m, Sequence) and not isinstance(m, str):
        return _divisible_into_blocks(m, axis)
    m = _checks.static_count(m, "m", "weights in a group")
    check_axes(axis)

    def divides(path: str, shape: tuple[int, ...], axes: Any) -> bool:
        if axes is None:
            return False
        # Of an unknown layout the mask builder will say so.
        own = numbered(-2 if axes == FLAX else axes, path, shape)
        return math.prod(shape[i] for i in own) % m == 0

    def prunable(params: Params) -> Any:
        leaves, structure = jax.tree.flatten(params)
        paths, flags = _checks.leaf_paths(params), jax.tree.leaves(matrices(params))
        flags = [
            flag and divides(path, leaf.shape, axes)
            for path, leaf, flag, axes in zip(
                paths, leaves, flags, axes_of(axis, params), strict=True
            )
        ]
        return jax.tree.unflatten(structure, flags)

    return prunable


def _divisible_into_blocks(m: Sequence[int], axis: Any) -> Prunable:
    axis = -2 if axis == FLAX else axis
    axes = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    if len(m) != len(axes):
        raise ValueError(
            f"m must have one size for every axis; got m={m} and axis={axis}. For "
            "blocks of the last two axes pass axis=(-2, -1)."
        )
    sizes = [_checks.static_count(size, "m", "weights in a group") for size in m]
    axes = [_checks.check_axis(a) for a in axes]

    def divides(p: Any) -> bool:
        return all(
            -p.ndim <= a < p.ndim and p.shape[a] % size == 0
            for size, a in zip(sizes, axes, strict=True)
        )

    def prunable(params: Params) -> Any:
        return jax.tree.map(
            lambda p, is_matrix: is_matrix and divides(p), params, matrices(params)
        )

    return prunable


def select_prunable(tree: Any, prunable: Prunable) -> list[bool]:
    """Lists, in leaf order, which leaves ``prunable`` selects; empty leaves are not."""
    given = jax.tree.leaves(prunable)
    if given and all(isinstance(flag, bool | np.bool_) for flag in given):
        chosen = _broadcast(prunable, tree)
    elif callable(prunable):
        chosen = prunable(tree)
    else:
        raise TypeError(
            "prunable must be a function, such as jp.matrices or jp.by_path('kernel'), "
            "or a tree of Python bools like params, or a prefix of one; got "
            f"{_checks.described(prunable)}."
        )
    if jax.tree.structure(chosen) != jax.tree.structure(tree):
        raise ValueError(
            "prunable must return a tree with the structure of its argument and one "
            f"bool per leaf; got {jax.tree.structure(chosen)} for "
            f"{jax.tree.structure(tree)}."
        )
    leaves, flags = jax.tree.leaves(tree), jax.tree.leaves(chosen)
    for path, flag in zip(_checks.leaf_paths(tree), flags, strict=True):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(
                f"prunable must return Python bools; for the leaf {path} it returned "
                f"{type(flag).__name__}. Decide by path, shape and dtype, not by value."
            )
    flags = [bool(f) and np.size(x) > 0 for f, x in zip(flags, leaves, strict=True)]
    if not any(flags):
        raise ValueError(
            "Nothing is prunable: prunable selects none of the leaves "
            f"{_checks.leaf_paths(tree)[:5]}. The default, jp.matrices, selects "
            "floating leaves of rank two or more; jp.by_path(pattern) selects leaves "
            "of any rank by their path."
        )
    return flags


def _broadcast(flags: Any, tree: Any) -> Any:
    """Gives every leaf the flag of its subtree."""
    try:
        return jax.tree.broadcast(flags, tree)
    except ValueError as error:
        raise ValueError(
            "prunable must be a tree of Python bools with the structure of params, or "
            f"a prefix of it; got {jax.tree.structure(flags)} for "
            f"{jax.tree.structure(tree)}."
        ) from error
