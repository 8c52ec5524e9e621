"""The precision of scores: float32 or wider."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def upcast_half(tree: Any) -> Any:
    """Casts half precision to float32; wider floats are unchanged."""

    def cast(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        narrow = jnp.finfo(leaf.dtype).bits < 32
        return leaf.astype(jnp.float32) if narrow else leaf

    return jax.tree.map(cast, tree)


def precision_of(tree: Any) -> contextlib.AbstractContextManager[Any]:
    """Enables x64 if a leaf is float64, as scores of `jaxprune.synflow` may be."""
    if any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(tree)):
        return jax.enable_x64(True)
    return contextlib.nullcontext()
