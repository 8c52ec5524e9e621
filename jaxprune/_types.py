"""The data model in one place: what parameters, scores and masks are."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

T = TypeVar("T")  # Names the tree structure; only jaxtyping reads it.

Params: TypeAlias = PyTree[Any, "T"]
"""Any pytree of arrays. Its floating leaves are the weights."""

Scores: TypeAlias = PyTree[Float[Array | np.ndarray, "?*shape"], "T"]
"""A tree like the parameters; the larger the score, the better the reason to keep."""

Mask: TypeAlias = PyTree[Bool[Array | np.ndarray, "?*shape"], "T"]
"""A tree like the parameters; ``True`` is kept, and stands wherever pruning may not."""

LossFn: TypeAlias = Callable[..., Any]
"""``loss_fn(params, *batch) -> loss``: a scalar, the mean over the batch."""

ScoreFn: TypeAlias = Callable[..., Any]
"""``score(params, *batch) -> scores``."""

Prunable: TypeAlias = Callable[[Any], Any] | PyTree[bool]
"""Which leaves take part, as optax's ``mask=``: a function of a tree to a tree of
Python bools, such a tree, or a prefix of one."""

Real: TypeAlias = float | int
"""A number known while tracing."""
