"""Which floats scores are computed in: float32 at least, float64 where they come so."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def upcast_half(tree: Any) -> Any:
    """Casts half precision to float32, and leaves wider floats alone."""

    def cast(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        narrow = jnp.finfo(leaf.dtype).bits < 32
        return leaf.astype(jnp.float32) if narrow else leaf

    return jax.tree.map(cast, tree)


def precision_of(tree: Any) -> contextlib.AbstractContextManager[Any]:
    """Keeps float64 leaves whole where x64 is off: `jaxprune.synflow` makes such."""
    if any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(tree)):
        return jax.enable_x64(True)
    return contextlib.nullcontext()
