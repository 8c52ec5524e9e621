"""The optimizer state of weights that come back, in any optax optimizer."""

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
    """Raises unless ``inner`` keeps its state weight by weight, where optax finds it.

    Args:
      inner: the wrapped optimizer.
      params: the parameters that it is to be initialised with; nothing is computed.
      name: the transform's name, for the error.
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
        raise ValueError(_refusal(name, "it is laid out otherwise")) from error
    if refused:
        path, shape, found = refused[0]
        detail = f"for the leaf {path} of shape {shape} it has shape {found}"
        raise ValueError(_refusal(name, detail))


def check_steady(before: Any, after: Any, name: str) -> None:
    """Raises if the optimizer's state has another structure after its update."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"jaxprune.{name} wraps an optimizer whose state keeps its tree structure, "
            "but here it changed on the update. Put the link that changes it "
            f"(optax.monitor does) beside: optax.chain(jp.{name}(...), "
            "optax.monitor(...))."
        )


def fresh_where(
    grown: Any, state: Any, inner: optax.GradientTransformation, params: Any
) -> Any:
    """Gives the parameter-like state of grown weights the value that it began with.

    They start at 0, so it is the value that ``inner.init`` gives a 0.

    Args:
      grown: a tree of bool like ``params``.
      state: the state of ``inner``.
      inner: an optimizer that `check_resettable` lets pass.
      params: the parameters, for their shapes.

    Returns:
      A state like ``state``.
    """
    # In the order of the state: what is not like the parameters is passed by in both.
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
    """Tells whether a value is one flag of a whole leaf, as ``optax.zero_nans`` has."""
    return np.shape(value) == () and value.dtype == jnp.bool_


def _refusal(name: str, detail: str) -> str:
    return (
        f"jaxprune.{name} gives a weight that comes back the optimizer state that it "
        "began with, so the wrapped optimizer's state must have the parameters' tree "
        f"and shapes; {detail}. SGD, Adam and most others will do; factored or shared "
        "state (adafactor, novograd, sm3, galore, optax.flatten) will not. With a "
        "fixed mask, jp.sparse takes any optimizer."
    )
