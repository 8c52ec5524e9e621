"""Arguments that are one number for all leaves, or a tree of numbers."""

from typing import Any

import jax


def is_tree(value: Any) -> bool:
    """Tells whether a value is a tree of values."""
    return jax.tree.structure(value) != jax.tree.structure(0.0)


def per_leaf(value: Any, tree: Any, name: str, like: str = "scores") -> list[Any]:
    """Lists the value of each leaf: the value itself, or from a tree or a prefix."""
    try:
        return jax.tree.leaves(jax.tree.broadcast(value, tree))
    except ValueError as error:
        raise ValueError(
            f"{name} must be a number, or a tree of numbers with the structure of "
            f"{like}, {jax.tree.structure(tree)}, or a prefix of it; got "
            f"{jax.tree.structure(value)}."
        ) from error
