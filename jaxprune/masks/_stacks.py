"""Layers stacked along a leading axis, as ``jax.lax.scan`` runs over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Params, Prunable
from jaxprune.core import _checks
from jaxprune.core._placement import shard_like
from jaxprune.core._prunable import compiled


def stacked(pattern: str) -> Prunable:
    """Selects the matrices of a model whose layers are stacked for a scan.

    In a stack every leaf has a leading axis for the layer, so a normalization's scales
    are of rank two. Leaves that match the pattern are selected if they have rank three
    or more; all other leaves, as in `matrices`, if they have rank two or more.

    Args:
      pattern: a regular expression, searched for anywhere in the path of a leaf, as in
        `by_path`: the stacked leaves.

    Returns:
      A function ``prunable(params)`` to a tree of Python bools.

    Raises:
      TypeError: if ``pattern`` is not a string.
      ValueError: if it is no regular expression.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> layers = {"scale": jnp.ones((6, 8)), "kernel": jnp.ones((6, 8, 8))}
      >>> jp.stacked("^layers/")({"layers": layers, "head": jnp.ones((8, 2))})
      {'head': True, 'layers': {'kernel': True, 'scale': False}}
    """
    search = compiled(pattern).search

    def prunable(params: Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, p: (
                _checks.is_floating(p)
                and p.ndim >= (3 if search(_checks.path_str(path)) else 2)
            ),
            params,
        )

    return prunable


def unstack(tree: Any, pattern: str) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Splits stacked leaves into layers, so that each is scored and pruned as a leaf.

    `layerwise_mask`, `erk`, `lamp`, ``min_keep`` and `sparsities` treat a leaf as a
    layer. Call them on the layers of a stack, and stack the mask again.

    Args:
      tree: any pytree of arrays or ``jax.ShapeDtypeStruct``.
      pattern: a regular expression, searched for anywhere in the path of a leaf, as in
        `by_path`: the leaves whose leading axis numbers layers.

    Returns:
      ``(layers, restack)``: a dict from paths to leaves, a stacked leaf being a list of
      its layers; and a function from such a dict of arrays, such as a mask, to a tree
      like ``tree``, with its shardings.

    Raises:
      ValueError: if the pattern matches no leaf, a leaf that matches is a scalar, or
        two leaves share a path.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> scores = {"layers": jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]])}
      >>> layers, restack = jp.unstack(scores, "^layers")
      >>> restack(jp.layerwise_mask(layers, 0.5))["layers"].tolist()
      [[[False, True]], [[False, True]]]
    """
    leaves, structure = jax.tree.flatten(tree)
    paths = _checks.leaf_paths(tree)
    search = compiled(pattern).search
    if not any(map(search, paths)):
        raise ValueError(
            f"The pattern {pattern!r} matches no leaf. The paths are "
            f"{_checks.some(paths, 20)}."
        )
    layers: dict[str, Any] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        if path in layers or (search(path) and not np.ndim(leaf)):
            raise ValueError(
                f"The leaf {path} cannot be split into layers: it is a scalar, or "
                "another leaf has the same path."
            )
        layers[path] = _split(leaf) if search(path) else leaf

    def restack(layers: Any) -> Any:
        found = [layers[path] for path in paths]
        return jax.tree.unflatten(
            structure,
            [
                shard_like(jnp.stack(new), old) if search(path) else new
                for path, new, old in zip(paths, found, leaves, strict=True)
            ],
        )

    return layers, restack


def _split(leaf: Any) -> list[Any]:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return [leaf.update(shape=leaf.shape[1:], sharding=None)] * leaf.shape[0]
    return [leaf[i] for i in range(leaf.shape[0])]
