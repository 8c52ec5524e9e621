"""One number for all leaves, or a tree of numbers with one for each."""

from typing import Any

import jax


def is_tree(value: Any) -> bool:
    """Tells whether a value is a tree of values, and not one."""
    return jax.tree.structure(value) != jax.tree.structure(0.0)


def per_leaf(value: Any, tree: Any, name: str, like: str = "scores") -> list[Any]:
    """The value for each leaf of a tree: one for all, or those of a tree like it."""
    structure = jax.tree.structure(tree)
    if not is_tree(value):
        return [value] * structure.num_leaves
    if jax.tree.structure(value) != structure:
        raise ValueError(
            f"{name} must be one number, or a tree of numbers with the structure of "
            f"{like}, {structure}; got {jax.tree.structure(value)}."
        )
    return jax.tree.leaves(value)
