"""What a method is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import jaxprune as jp
from experiments.config import Pruning
from experiments.models import Network


class Forward(NamedTuple):
    """Dense weights that are trained through a sparse forward pass.

    Attributes:
      mask: ``mask(params, sparsity, key) -> mask`` of the weights that the network is
        run with; the key is another one in every step.
      reached: the same of the weights that a gradient reaches; None is all of them.
      decay: of the weights that the network is run without, added to their gradient.
    """

    mask: Callable[..., Any]
    reached: Callable[..., Any] | None = None
    decay: float = 0.0

    def sparse(self, loss_fn: Callable[..., Any], *given: Any) -> Callable[..., Any]:
        """A loss on the pruned weights, ``given`` the sparsity and the key."""
        reached = self.reached
        return jp.forward_sparse(
            loss_fn,
            lambda params: self.mask(params, *given),
            decay=self.decay,
            backward=None if reached is None else lambda p: reached(p, *given),
        )


class Recipe(NamedTuple):
    """How a network is trained. Recipes that are equal share a compiled program.

    Attributes:
      wrap: ``wrap(optimizer, sparsity, key) -> optimizer``, which prunes. The sparsity
        may be traced, so that one compiled program trains at all of them.
      forward: what happens in the forward pass; None is nothing.
    """

    wrap: Callable[..., optax.GradientTransformationExtraArgs]
    forward: Forward | None = None


class Settling(NamedTuple):
    """A trigger of jaxprune, with what it looks at.

    Attributes:
      trigger: of one network.
      view: ``view(params)``, what the trigger is updated with.
      begin: the epochs after which it is given its first parameters.
    """

    trigger: jp.Trigger
    view: Callable[[Any], Any]
    begin: int


class Pruner(NamedTuple):
    """A method.

    Attributes:
      find: ``find(key, params, stats, batch, sparsity, inverted=False) -> mask`` for
        one network, ``batch`` a standardised ``Split``, ``inverted`` to keep the worst;
        None to start dense.
      recipe: how it is trained then.
      warmup: dense epochs before ``find``.
      draw: ``draw(key, params, sparsity) -> (params, mask)`` for one network: weights
        drawn anew together with their mask, before all else; None keeps the weights.
      trigger: ``trigger(sparsity)``, what tells after every dense epoch whether it is
        time for ``find``; None is a number of epochs.
      finish: ``finish(params, stats, batch, sparsity) -> (params, mask)`` for one
        network that is trained: nothing is trained after it; None leaves it as it is.
    """

    find: Callable[..., Any] | None
    recipe: Recipe
    warmup: int = 0
    draw: Callable[..., Any] | None = None
    trigger: Callable[[float], Settling] | None = None
    finish: Callable[..., Any] | None = None


Factory = Callable[[Pruning, Network, int], Pruner]


def _keep(
    tx: optax.GradientTransformation, sparsity: Any, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    del sparsity, key
    return optax.chain(tx, jp.keep_sparse())


KEEP = Recipe(_keep)
"""Keeps the mask that is in the state."""
