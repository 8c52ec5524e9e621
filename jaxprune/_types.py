"""The data model: what parameters, scores, masks and numbers are.

Trees of arrays are jaxtyping's, which states shapes and is checked in tests. Numbers
and random keys are chex's, as elsewhere in the DeepMind JAX ecosystem.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias, TypeVar

import chex
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

T = TypeVar("T")  # Names the tree structure; only jaxtyping reads it.

Params: TypeAlias = PyTree[Any, "T"]
"""Any pytree of arrays. Its floating leaves are the weights."""

Scores: TypeAlias = PyTree[Float[Array | np.ndarray, "?*shape"], "T"]
"""A tree like the parameters. Weights with larger scores are kept."""

Mask: TypeAlias = PyTree[Bool[Array | np.ndarray, "?*shape"], "T"]
"""A tree like the parameters: ``True`` where a weight is kept or may not be pruned."""

Numeric: TypeAlias = chex.Numeric
"""A number, or a scalar array that may be traced."""

Key: TypeAlias = chex.PRNGKey
"""A JAX random key."""

AxisName: TypeAlias = Hashable
"""The name of a mapped axis (of ``pmap`` or ``shard_map``), or a tuple of names."""

LossFn: TypeAlias = Callable[..., Any]
"""``loss_fn(params, *batch) -> loss``: a scalar, the mean over the batch."""

ScoreFn: TypeAlias = Callable[..., Any]
"""``score(params, *batch) -> scores``."""

Prunable: TypeAlias = Callable[[Any], Any] | PyTree[bool]
"""Which leaves may be pruned, given as optax's ``mask=``: a function from a tree to a
tree of Python bools, such a tree, or a prefix of one."""

Real: TypeAlias = float | int
"""A number known while tracing."""
