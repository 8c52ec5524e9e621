"""Resets the state of an optax optimizer for weights that grow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.core import _checks
from jaxprune.transforms._state import is_masked_node


def check_resettable(
    inner: optax.GradientTransformation, params: Any, name: str
) -> None:
    """Raises unless the state of ``inner`` is like the parameters, as optax finds it.

    Args:
      inner: the wrapped optimizer.
      params: the parameters to initialize it with; only shapes are evaluated.
      name: the transformation's name, for the error.
    """
    state = jax.eval_shape(inner.init, params)
    refused = []

    def look(value: Any, path: Any, leaf: Any) -> None:
        if is_masked_node(value) or _is_flag(value):
            return
        if np.shape(value) != np.shape(leaf):
            refused.append((path, np.shape(leaf), np.shape(value)))

    paths = jax.tree.unflatten(jax.tree.structure(params), _checks.leaf_paths(params))
    try:
        optax.tree.map_params(inner, look, state, paths, params, is_leaf=is_masked_node)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_refusal(name, "its tree is different")) from error
    if refused:
        path, shape, found = refused[0]
        detail = f"for the leaf {path} of shape {shape} it has the shape {found}"
        raise ValueError(_refusal(name, detail))


def check_steady(before: Any, after: Any, name: str) -> None:
    """Raises if an update changed the structure of the optimizer's state."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"jaxprune.{name} wraps optimizers whose state keeps its tree structure, "
            "but an update changed it. Move the link that changes it, such as "
            f"optax.monitor, out of the wrapper: optax.chain(jp.{name}(...), "
            "optax.monitor(...))."
        )


def fresh_where(
    grown: Any, state: Any, inner: optax.GradientTransformation, params: Any
) -> Any:
    """Resets the parameter-like state of grown weights to its initial value.

    Grown weights start at 0, so this is the value that ``inner.init`` gives a 0.

    Args:
      grown: a tree of bool like ``params``.
      state: the state of ``inner``.
      inner: an optimizer that `check_resettable` accepts.
      params: the parameters, for their shapes.

    Returns:
      A state like ``state``.
    """
    # Both calls visit the parameter-like values of the state in the same order.
    fresh: list[Any] = []
    start = inner.init(jax.tree.map(jnp.zeros_like, params))
    optax.tree.map_params(inner, fresh.append, start, is_leaf=is_masked_node)
    following = iter(fresh)

    def chosen(old: Any, flags: Any) -> Any:
        new = next(following)
        if is_masked_node(old) or _is_flag(old):
            return old
        return jnp.where(flags, new.astype(old.dtype), old)

    return optax.tree.map_params(inner, chosen, state, grown, is_leaf=is_masked_node)


def _is_flag(value: Any) -> bool:
    """Returns whether a value is a flag for a whole leaf, as in ``optax.zero_nans``."""
    return np.shape(value) == () and value.dtype == jnp.bool_


def _refusal(name: str, detail: str) -> str:
    return (
        f"jaxprune.{name} resets the optimizer state of weights that grow, so the "
        f"state must have the tree and shapes of the parameters; {detail}. SGD, Adam "
        "and most optimizers work. Those with factored or shared state (adafactor, "
        "novograd, sm3, galore, optax.flatten) do not. With a fixed mask, jp.sparse "
        "accepts any optimizer."
    )
