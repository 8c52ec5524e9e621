"""The optimizer states that hold a mask."""

from typing import Any, NamedTuple, TypeAlias

import jax

from jaxprune._types import Mask, Params


class SparseState(NamedTuple):
    """The state of `keep_sparse`, `update_mask`, `gradual` and `gradual_n_m`.

    Attributes:
      step: the number of updates made, an int32 scalar.
      mask: the mask in use, a tree of bool like the parameters.
    """

    step: jax.Array
    mask: Mask


class SparseWrapperState(NamedTuple):
    """The state of `sparse`, `rigl` and `granet`.

    Attributes:
      step: the number of updates made, an int32 scalar.
      mask: the mask in use, a tree of bool like the parameters.
      inner_state: the state of the wrapped optimizer.
    """

    step: jax.Array
    mask: Mask
    inner_state: Any


class SetTrainingState(NamedTuple):
    """The state of `set_training`.

    Attributes:
      step: the number of updates made, an int32 scalar.
      mask: the mask in use, a tree of bool like the parameters.
      inner_state: the state of the wrapped optimizer.
      key: the given random key; update k draws from this key folded with k.
    """

    step: jax.Array
    mask: Mask
    inner_state: Any
    key: jax.Array


class DissipatingState(NamedTuple):
    """The state of `dissipating`.

    Attributes:
      step: the number of updates made, an int32 scalar.
      mask: the mask in use, a tree of bool like the parameters.
      start: a copy of the parameters at init; displacements are measured from it.
    """

    step: jax.Array
    mask: Mask
    start: Params


class KStartsState(NamedTuple):
    """The state of `k_starts`.

    Attributes:
      step: the number of updates made, an int32 scalar.
      mask: the mask in use, a tree of bool like the parameters.
      evidence: the sum of absolute gradients so far, a tree like the parameters in
        float32 or wider; ``()`` if the fitness is the magnitude alone.
      fitness: the fitness of each mask, float32 of shape (k,); zeros before the choice.
      key: the data of the random key that the masks are drawn from.
    """

    step: jax.Array
    mask: Mask
    evidence: Any
    fitness: jax.Array
    key: jax.Array


MaskState: TypeAlias = (
    SparseState
    | SparseWrapperState
    | SetTrainingState
    | DissipatingState
    | KStartsState
)
