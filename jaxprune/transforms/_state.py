"""Masks in optimizer states: how they start, and how users read and swap them."""

from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Mask, Params
from jaxprune.core import _checks
from jaxprune.core._placement import all_true, is_cut, shard_like
from jaxprune.transforms._states import MaskState


def initial_mask(mask: Mask | None, params: Any) -> Any:
    """Returns the mask that a link starts from: a checked copy, or all True.

    It has the parameters' shardings, and covers only the leaves that ``optax.masked``
    leaves visible. A tree without leaves is returned as is: optax passes one to find
    the parts of a state that are like the parameters.
    """
    if not jax.tree.leaves(params):
        return params
    if mask is None:
        return jax.tree.map(all_true, params)
    mask = narrowed(mask, params)
    _checks.check_mask(mask, params)
    _checks.check_keeps_something(mask)
    return jax.tree.map(copied_like, mask, params)


def get_mask(opt_state: optax.OptState, params: Params) -> Mask:
    """Reads the mask in use from any optimizer state, as a full mask.

    The states of jaxprune's transformations are found by their type, however deep they
    are nested. If there are several (two links in a chain, ``optax.partition``), a
    weight is kept if all of them keep it. Leaves that no link sees are all True. With
    one link, ``optax.tree.get(opt_state, "mask")`` returns the same mask.

    Args:
      opt_state: the state of an optax transformation with at least one jaxprune link.
      params: the parameters; only their structure, shapes and shardings are read.

    Returns:
      A mask like ``params``.

    Raises:
      ValueError: if the state holds no mask, or it does not match ``params``.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> mask = {"w": jnp.array([True, False])}
      >>> tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(mask))
      >>> jp.get_mask(tx.init(params), params)
      {'w': Array([ True, False], dtype=bool)}
    """
    states = _mask_states(opt_state)
    _require_states(states)
    full = jax.tree.map(all_true, params)
    for state in states:
        widened = _widened(state.mask, full)
        _checks.check_like(widened, full, "mask", "params")
        full = jax.tree.map(jnp.logical_and, full, widened)
    return full


def set_mask(opt_state: optax.OptState, mask: Mask) -> optax.OptState:
    """Writes a mask into every link of an optimizer state.

    Jitted training steps are not recompiled. The next update sets newly pruned weights
    to 0, and weights that the new mask brings back are trained from 0 on.

    Args:
      opt_state: the state of an optax transformation with at least one jaxprune link.
      mask: a tree of bool like the parameters, ``True`` = kept. It is copied; a link
        inside ``optax.masked`` or ``optax.partition`` gets the leaves that it sees.

    Returns:
      A new state of the same structure.

    Raises:
      ValueError: if the state holds no mask, or ``mask`` does not match it.
      TypeError: if the mask is not bool.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> tx = optax.chain(optax.sgd(0.1), jp.keep_sparse())
      >>> state = jp.set_mask(tx.init(params), {"w": jnp.array([False, True])})
      >>> jp.get_mask(state, params)
      {'w': Array([False,  True], dtype=bool)}
    """
    _require_states(_mask_states(opt_state))
    _checks.check_keeps_something(mask)

    def written(node: Any) -> Any:
        if not _is_mask_state(node):
            return node
        leaves = _matching_leaves(narrowed(mask, node.mask), node.mask)
        new = jax.tree.structure(node.mask).unflatten(leaves)
        _checks.check_mask(new, node.mask, "mask")
        node = node._replace(mask=jax.tree.map(copied_like, new, node.mask))
        if not hasattr(node, "inner_state"):
            return node
        return node._replace(inner_state=in_all(node.inner_state))

    def in_all(state: Any) -> Any:
        return jax.tree.map(written, state, is_leaf=_is_mask_state)

    return in_all(opt_state)


def _is_mask_state(node: Any) -> TypeGuard[MaskState]:
    return isinstance(node, MaskState)


def _mask_states(opt_state: Any) -> list[MaskState]:
    """Lists all mask states, the outer before those that they wrap."""
    found = []
    for node in jax.tree.leaves(opt_state, is_leaf=_is_mask_state):
        if _is_mask_state(node):
            found += [node, *_mask_states(getattr(node, "inner_state", ()))]
    return found


def _require_states(states: list[MaskState]) -> None:
    if not states:
        raise ValueError(
            "The optimizer state holds no mask. Put jp.keep_sparse(mask) at the end of "
            "the chain, or wrap the optimizer in jp.sparse(optimizer, mask)."
        )


def is_masked_node(node: Any) -> bool:
    """Returns whether optax has hidden the leaf or subtree at this place."""
    return isinstance(node, optax.MaskedNode)


def narrowed(mask: Any, tree: Any) -> Any:
    """Puts ``optax.MaskedNode`` into a mask wherever the tree has one."""
    if not _hides_something(tree):
        return mask
    return _map_hidden(lambda n, m: n if is_masked_node(n) else m, tree, mask)


def _widened(mask: Any, full: Any) -> Any:
    """Fills every ``optax.MaskedNode`` of a mask from a full mask."""
    if _hides_something(mask):
        mask = _map_hidden(lambda n, f: f if is_masked_node(n) else n, mask, full)
    return jax.tree.structure(full).unflatten(_matching_leaves(mask, full))


def _hides_something(tree: Any) -> bool:
    return any(map(is_masked_node, jax.tree.leaves(tree, is_leaf=is_masked_node)))


def _map_hidden(choose: Callable[[Any, Any], Any], tree: Any, full: Any) -> Any:
    """Maps over a tree that hides leaves or subtrees of another.

    If both have the same number of leaves, their containers may differ.
    """
    nodes, structure = jax.tree.flatten(tree, is_leaf=is_masked_node)
    leaves = jax.tree.leaves(full)
    if len(leaves) == len(nodes):
        return structure.unflatten(map(choose, nodes, leaves))
    try:  # A node may hide a whole subtree.
        return jax.tree.map(choose, tree, full, is_leaf=is_masked_node)
    except ValueError as error:
        raise ValueError(
            "mask must have the tree structure of params, or of the leaves that "
            f"optax.masked leaves visible; got {jax.tree.structure(full)} and "
            f"{jax.tree.structure(tree)}."
        ) from error


def _matching_leaves(tree: Any, reference: Any) -> list[Any]:
    """Lists a tree's leaves; raises unless there are as many as in the reference.

    Containers may differ: ``nnx.Optimizer`` keeps a mask in its own variables.
    """
    leaves = jax.tree.leaves(tree)
    if len(leaves) != len(jax.tree.leaves(reference)):
        _checks.check_like(tree, reference, "mask", "params")
    return leaves


def copied_like(mask: Any, leaf: Any) -> jax.Array:
    """Copies a mask to the devices of ``leaf``, so that donation spares the user's."""
    copy = shard_like(jnp.array(mask, copy=True), leaf)
    # On Explicit meshes shardings are part of the type, also while tracing.
    sharding = jax.typeof(leaf).sharding
    if is_cut(sharding) and jax.typeof(copy).sharding != sharding:
        return jax.sharding.reshard(copy, sharding)
    return copy
