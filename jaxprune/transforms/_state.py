"""Masks in optimizer states: how they start, and how users read and swap them.

A mask state is a NamedTuple whose first fields are ``step`` and ``mask``, wherever it
stands in an optax state.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._types import Mask, Params
from jaxprune.core import _checks
from jaxprune.core._placement import all_true, is_cut, shard_like


def initial_mask(mask: Mask | None, params: Any) -> Any:
    """The mask that a link starts from: a checked copy, or all True.

    It is narrowed to the leaves that the link sees inside ``optax.masked``, and lies
    where the parameters lie. A tree without leaves is handed back: optax passes one to
    find the parameter-like parts of a state.
    """
    if not jax.tree.leaves(params):
        return params
    if mask is None:
        return jax.tree.map(all_true, params)
    mask = narrowed(mask, params)
    _checks.check_mask(mask, params)
    _checks.check_keeps_something(mask)
    return jax.tree.map(copied_like, mask, params)


def get_mask(opt_state: Any, params: Params) -> Mask:
    """Reads the mask in use from any optimizer state, as a full mask.

    With several links (a chain of two, ``optax.partition``) it is their conjunction;
    leaves that no link sees are all True. With one link,
    ``optax.tree.get(opt_state, "mask")`` reads the same.

    Args:
      opt_state: the state of an optax transformation that holds at least one jaxprune
        link.
      params: the parameters, for the structure.

    Returns:
      A mask like ``params``.

    Raises:
      ValueError: if there is no mask in the state, or it does not match ``params``.

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


def set_mask(opt_state: Any, mask: Mask) -> Any:
    """Writes a mask into every link of an optimizer state.

    Nothing is compiled again. The next update sets the newly pruned weights to 0; a
    weight that the new mask brings back starts from the 0 that it stands at.

    Args:
      opt_state: the state of an optax transformation that holds at least one jaxprune
        link.
      mask: a tree of bool like the parameters; copied, and narrowed for links inside
        ``optax.masked`` and ``optax.partition``.

    Returns:
      A new state.

    Raises:
      ValueError: if there is no mask in the state, or the new one does not match it.
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
        new = narrowed(mask, node.mask)
        old_leaves, structure = jax.tree.flatten(node.mask)
        new = jax.tree.unflatten(structure, _matching_leaves(new, node.mask))
        _checks.check_mask(new, node.mask, "mask")
        new = jax.tree.unflatten(
            structure,
            [
                copied_like(leaf, old)
                for leaf, old in zip(jax.tree.leaves(new), old_leaves, strict=True)
            ],
        )
        rest = {
            field: jax.tree.map(written, getattr(node, field), is_leaf=_is_mask_state)
            for field in node._fields
            if field not in ("step", "mask")
        }
        return node._replace(mask=new, **rest)

    return jax.tree.map(written, opt_state, is_leaf=_is_mask_state)


def _is_mask_state(node: Any) -> bool:
    return isinstance(node, tuple) and getattr(node, "_fields", ())[:2] == (
        "step",
        "mask",
    )


def _mask_states(opt_state: Any) -> list[Any]:
    """All mask states, outermost first, those inside wrappers included."""
    found = []
    for node in jax.tree.leaves(opt_state, is_leaf=_is_mask_state):
        if _is_mask_state(node):
            found.append(node)
            for field in node._fields[2:]:
                found += _mask_states(getattr(node, field))
    return found


def _require_states(states: list[Any]) -> None:
    if not states:
        raise ValueError(
            "The optimizer state holds no mask. Put jp.keep_sparse(mask) at the end of "
            "the chain, or wrap the optimizer in jp.sparse(optimizer, mask)."
        )


def is_masked_node(node: Any) -> bool:
    """Tells whether optax has hidden what stands here."""
    return isinstance(node, optax.MaskedNode)


def narrowed(mask: Any, tree: Any) -> Any:
    """Puts ``optax.MaskedNode`` into a mask wherever the tree has one."""
    nodes, structure = jax.tree.flatten(tree, is_leaf=is_masked_node)
    if not any(map(is_masked_node, nodes)):
        return mask
    leaves = jax.tree.leaves(mask)
    if len(leaves) == len(nodes):
        pairs = zip(nodes, leaves, strict=True)
        return structure.unflatten(n if is_masked_node(n) else m for n, m in pairs)
    try:  # A node may stand for a whole subtree.
        return jax.tree.map(
            lambda n, m: n if is_masked_node(n) else m,
            tree,
            mask,
            is_leaf=is_masked_node,
        )
    except ValueError as error:
        raise _does_not_fit(mask, tree) from error


def _widened(mask: Any, full: Any) -> Any:
    """Puts all True into a mask wherever it has an ``optax.MaskedNode``."""
    nodes = jax.tree.leaves(mask, is_leaf=is_masked_node)
    if not any(map(is_masked_node, nodes)):
        return jax.tree.structure(full).unflatten(_matching_leaves(mask, full))
    leaves, structure = jax.tree.flatten(full)
    if len(leaves) == len(nodes):
        pairs = zip(nodes, leaves, strict=True)
        return structure.unflatten(f if is_masked_node(n) else n for n, f in pairs)
    try:  # A node may stand for a whole subtree.
        return jax.tree.map(
            lambda n, f: f if is_masked_node(n) else n,
            mask,
            full,
            is_leaf=is_masked_node,
        )
    except ValueError as error:
        raise _does_not_fit(mask, full) from error


def _does_not_fit(mask: Any, tree: Any) -> ValueError:
    return ValueError(
        "mask must have the tree structure of params, or of the leaves that "
        f"optax.masked leaves over; got {jax.tree.structure(mask)} for "
        f"{jax.tree.structure(tree)}."
    )


def _matching_leaves(tree: Any, reference: Any) -> list[Any]:
    """The leaves of a tree; their number must be that of the reference.

    Containers may differ: ``nnx.Optimizer`` keeps a mask in variables of its own.
    """
    leaves = jax.tree.leaves(tree)
    if len(leaves) != len(jax.tree.leaves(reference)):
        _checks.check_like(tree, reference, "mask", "params")
    return leaves


def copied_like(mask: Any, leaf: Any) -> jax.Array:
    """Copies a mask, so that donation spares the user's, to where ``leaf`` lies."""
    copy = shard_like(jnp.array(mask, copy=True), leaf)
    # While tracing, an Explicit mesh wants to be told; elsewhere the type says nothing.
    sharding = jax.typeof(leaf).sharding
    if is_cut(sharding) and jax.typeof(copy).sharding != sharding:
        return jax.sharding.reshard(copy, sharding)
    return copy
