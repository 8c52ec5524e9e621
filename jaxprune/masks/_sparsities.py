"""Sparsity by name: numbers for the leaves whose paths match, and a default."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxprune._types import Params, Prunable
from jaxprune.core import _checks
from jaxprune.core._prunable import compiled, matrices, select_prunable


def sparsities(
    params: Params,
    patterns: Mapping[str, Any],
    *,
    default: Any = 0.0,
    prunable: Prunable = matrices,
) -> Any:
    """Sets the sparsity of each leaf by its path.

    A leaf takes the sparsity of the first pattern that its path matches. `by_path` says
    how paths are written.

    Args:
      params: a tree of arrays or ``jax.ShapeDtypeStruct``; only paths, shapes and types
        are read.
      patterns: regular expressions, searched for anywhere in the path, to sparsities in
        [0, 1). For `gradual` a sparsity may also be a schedule.
      default: the sparsity of the other leaves.
      prunable: which leaves may be pruned; the others get 0.

    Returns:
      A tree of sparsities like ``params``, for `layerwise_mask`, `row_mask`,
      `block_mask` with ``scope="layerwise"``, `sparse_gpt`, `gradual`, and
      `structured.structured_mask` with ``scope="group"``.

    Raises:
      ValueError: if a pattern matches no path, or decides nothing because its leaves
        are not prunable or an earlier pattern matches all of them; if a sparsity is not
        in [0, 1); or if nothing is prunable.
      TypeError: if ``patterns`` is not a mapping from strings to numbers.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.ones((4, 4))
      >>> params = {"blocks": [{"attn": w, "mlp": w}, {"attn": w, "mlp": w}], "head": w}
      >>> jp.sparsities(params, {"^blocks/.*mlp": 0.7, "head": 0.0}, default=0.5)
      {'blocks': [{'attn': 0.5, 'mlp': 0.7}, {'attn': 0.5, 'mlp': 0.7}], 'head': 0.0}
    """
    if not isinstance(patterns, Mapping):
        raise TypeError(
            "patterns must be a mapping from regular expressions to sparsities, such "
            f"as {{'^blocks/.*mlp': 0.7}}; got {_checks.described(patterns)}."
        )
    _check(default, "default")
    flags = select_prunable(params, prunable)
    paths = _checks.leaf_paths(params)
    chosen: dict[str, Any] = {}
    for pattern, sparsity in patterns.items():
        _check(sparsity, f"the sparsity of the pattern {pattern!r}")
        search = compiled(pattern).search
        matched = [(p, flag) for p, flag in zip(paths, flags, strict=True) if search(p)]
        if not matched:
            raise ValueError(
                f"The pattern {pattern!r} matches no leaf. The paths are "
                f"{_checks.some(paths, 20)}."
            )
        may = [path for path, flag in matched if flag]
        if not may and (callable(sparsity) or sparsity > 0):
            raise ValueError(
                f"The pattern {pattern!r} matches only leaves that are not prunable, "
                f"{_checks.some([path for path, _ in matched])}. Choose them with "
                "prunable=jp.by_path(pattern), here and in the mask builder."
            )
        if may and all(path in chosen for path in may):
            raise ValueError(
                f"The pattern {pattern!r} decides nothing: earlier patterns match all "
                f"of its leaves, {_checks.some(may)}, and the first match counts. Move "
                "it up."
            )
        chosen = dict.fromkeys(may, sparsity) | chosen
    values = [
        chosen.get(path, default) if flag else 0.0
        for path, flag in zip(paths, flags, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), values)


def _check(sparsity: Any, name: str) -> None:
    if not callable(sparsity):
        _checks.check_sparsity(sparsity, name)
