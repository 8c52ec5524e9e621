"""What a method is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp

if TYPE_CHECKING:
    from experiments.config import Pruning
    from experiments.models import Network


Choose = Callable[..., tuple[Any, Any]]
"""``choose(view, params, sparsity) -> (params, mask)``, of one network."""


class Forward(NamedTuple):
    """Dense weights that are trained through a sparse forward pass.

    Attributes:
      mask: ``mask(params, sparsity, key) -> mask`` of the weights that the network runs
        with; every step passes another key.
      reached: the same of the weights that receive a gradient; None is all of them.
      decay: pulls the weights that the network runs without towards 0.
    """

    mask: Callable[..., Any]
    reached: Callable[..., Any] | None = None
    decay: float = 0.0


def keep(
    setup: Setup, tx: optax.GradientTransformation, sparsity: Any, key: Any
) -> optax.GradientTransformationExtraArgs:
    """Keeps the mask that is in the state."""
    del setup, sparsity, key
    return optax.chain(tx, jp.keep_sparse())


class Recipe(NamedTuple):
    """How a network is trained. Recipes that are equal share a compiled program.

    Attributes:
      optimizer: ``optimizer(setup, tx, sparsity, key) -> tx``, which prunes. The
        sparsity may be traced, so one compiled program trains at all of them.
      forward: the sparse forward pass; None is the plain one.
    """

    optimizer: Callable[..., optax.GradientTransformationExtraArgs] = keep
    forward: Forward | None = None

    def sparse(self, loss: Callable[..., Any], *given: Any) -> Callable[..., Any]:
        """The loss through the forward pass, ``given`` a sparsity and a key."""
        forward = self.forward
        if forward is None:
            return loss
        reached = forward.reached
        return jp.forward_sparse(
            loss,
            lambda params: forward.mask(params, *given),
            decay=forward.decay,
            backward=None if reached is None else lambda p: reached(p, *given),
        )

    def mask(self, params: Any, opt_state: Any, *given: Any) -> Any:
        """The mask that the network runs with, ``given`` a sparsity and a key."""
        if self.forward is not None:
            return self.forward.mask(params, *given)
        return jp.get_mask(opt_state, params)


class Start(NamedTuple):
    """What the last training starts from; trees have a leading axis of seeds.

    Attributes:
      params: the parameters.
      stats: the running statistics.
      mask: the masks.
      recipe: how they are trained.
      opt_state: the optimizer's state; None is a new one.
      first: how many epochs were trained so far.
      history: the metrics of these epochs.
      score_seconds: median time to choose one network's mask, compiled; None if there
        was nothing to choose.
      pruning_seconds: all the time that one network took so far.
      fitness: validation accuracy of the networks that K-starts trained, by seed.
    """

    params: Any
    stats: Any
    mask: Any
    recipe: Recipe = Recipe()
    opt_state: Any = None
    first: int = 0
    history: tuple[Any, ...] = ()
    score_seconds: float | None = None
    pruning_seconds: float = 0.0
    fitness: list[list[float]] | None = None


class Setup(Protocol):
    """What a method may ask of the program that runs it.

    Attributes:
      options: those of the methods.
      network: the network.
      epochs: of the whole training.
      steps: optimizer steps of the whole training.
    """

    options: Pruning
    network: Network
    epochs: int
    steps: int

    def dense(self, epochs: int) -> Start:
        """Trains whole networks; 0 epochs is initialization."""
        ...

    def prune(self, start: Start, choose: Choose, sparsity: float) -> Start:
        """Chooses every network's mask, and new weights if ``choose`` gives any."""
        ...


StartFn = Callable[[Any, float], Start]
Score = Callable[..., Any]


# Trees with a leading axis of seeds.


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def unstacked(tree: Any) -> list[Any]:
    size = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(size)]
