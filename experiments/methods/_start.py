"""The parts of a method."""

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

# choose(view, params, sparsity) -> (params, mask), for one network.
Choose = Callable[..., tuple[Any, Any]]
Score = Callable[..., Any]


def keep(setup: Setup, tx: Any, sparsity: Any, key: Any) -> Any:
    """Keeps the mask that is in the state."""
    del setup, sparsity, key
    return optax.chain(tx, jp.keep_sparse())


class Recipe(NamedTuple):
    """How to train a network; equal recipes share a compiled program.

    ``optimizer(setup, tx, sparsity, key) -> tx`` prunes. The sparsity may be traced, so
    one program serves them all. With ``forward(params, sparsity, key) -> mask``, dense
    weights are trained through a sparse forward pass; each step has a new key.
    """

    optimizer: Callable[..., optax.GradientTransformationExtraArgs] = keep
    forward: Callable[..., Any] | None = None
    backward: Callable[..., Any] | None = None  # Weights with a gradient; None: all.
    decay: float = 0.0  # Pulls the weights outside the forward mask towards 0.

    def sparse(self, loss: Callable[..., Any], *given: Any) -> Callable[..., Any]:
        """The loss through the forward pass, ``given`` a sparsity and a key."""
        forward, backward = self.forward, self.backward
        if forward is None:
            return loss
        return jp.forward_sparse(
            loss,
            lambda params: forward(params, *given),
            decay=self.decay,
            backward=backward and (lambda params: backward(params, *given)),
        )

    def mask(self, params: Any, opt_state: Any, *given: Any) -> Any:
        """The mask that the network runs with, ``given`` a sparsity and a key."""
        if self.forward is not None:
            return self.forward(params, *given)
        return jp.get_mask(opt_state, params)


class Start(NamedTuple):
    """The start of the last training; trees have a leading axis of seeds."""

    params: Any
    stats: Any  # BatchNorm's running statistics.
    mask: Any
    recipe: Recipe = Recipe()
    opt_state: Any = None  # None: a new optimizer.
    first: int = 0  # Epochs trained so far.
    history: tuple[Any, ...] = ()  # Their metrics.
    score_seconds: float | None = None  # Median time to choose one network's mask.
    pruning_seconds: float = 0.0  # Everything that one network took so far.
    fitness: list[list[float]] | None = None  # Accuracies of K-starts, by seed.


class Setup(Protocol):
    """The interface between a method and the program that runs it."""

    options: Pruning
    network: Network
    epochs: int
    steps: int  # Optimizer steps of the whole training.

    def dense(self, epochs: int) -> Start:
        """Trains dense networks; 0 epochs is initialization."""
        ...

    def prune(self, start: Start, choose: Choose, sparsity: float) -> Start:
        """Chooses the mask of every network."""
        ...


StartFn = Callable[[Any, float], Start]


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def unstacked(tree: Any) -> list[Any]:
    size = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(size)]
