"""The optimizer state of weights that come back, in any optax optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import _checks


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
        if not _is_masked_node(value) and np.shape(value) != np.shape(leaf):
            refused.append((path, np.shape(leaf), np.shape(value)))

    paths = jax.tree.unflatten(jax.tree.structure(params), _checks.leaf_paths(params))
    try:
        optax.tree.map_params(
            inner, look, state, paths, params, is_leaf=_is_masked_node
        )
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_refusal(name, "it is laid out otherwise")) from error
    if refused:
        path, shape, found = refused[0]
        detail = f"for the leaf {path} of shape {shape} it has shape {found}"
        raise ValueError(_refusal(name, detail))


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
    fresh = inner.init(jax.tree.map(jnp.zeros_like, params))
    where = optax.tree.map_params(
        inner,
        lambda value, flags: value if _is_masked_node(value) else flags,
        state,
        grown,
        transform_non_params=lambda _: None,
        is_leaf=_is_masked_node,
    )

    def chosen(flags: Any, new: Any, old: Any) -> Any:
        return old if flags is None else jnp.where(flags, new.astype(old.dtype), old)

    return jax.tree.map(chosen, where, fresh, state, is_leaf=lambda x: x is None)


def _is_masked_node(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _refusal(name: str, detail: str) -> str:
    return (
        f"jaxprune.{name} gives a weight that comes back the optimizer state that it "
        "began with, so the wrapped optimizer's state must have the parameters' tree "
        f"and shapes; {detail}. SGD, Adam and most others will do; factored or shared "
        "state (adafactor, novograd, sm3, galore, optax.flatten) will not. With a "
        "fixed mask, jp.sparse takes any optimizer."
    )
