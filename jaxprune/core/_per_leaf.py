"""Arguments that are one number for all leaves, or a tree of numbers."""

from typing import Any

import jax


def is_tree(value: Any) -> bool:
    """Tells whether a value is a tree of values."""
    return jax.tree.structure(value) != jax.tree.structure(0.0)


def per_leaf(value: Any, tree: Any, name: str, like: str = "scores") -> list[Any]:
    """Lists the value of each leaf of a tree."""
    structure = jax.tree.structure(tree)
    if not is_tree(value):
        return [value] * structure.num_leaves
    if jax.tree.structure(value) != structure:
        raise ValueError(
            f"{name} must be one number, or a tree of numbers with the structure of "
            f"{like}, {structure}; got {jax.tree.structure(value)}."
        )
    return jax.tree.leaves(value)
