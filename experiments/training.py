"""One loss, one update and one evaluation, which all three programs use."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.config import Config, Pruning, Scaled
from experiments.data import Dataset, Split, augment
from experiments.models import Network


class State(NamedTuple):
    """The state of training."""

    params: Any  # Pruned weights are 0.
    stats: Any  # BatchNorm's running statistics.
    opt_state: Any  # With the mask.


def optimizer_of(config: Config | Scaled, steps: int) -> optax.GradientTransformation:
    """Nesterov's SGD with weight decay and a schedule, at ``steps`` steps an epoch."""
    schedule = optax.cosine_decay_schedule(
        config.learning_rate, decay_steps=steps * config.epochs
    )
    if config.drops:
        schedule = optax.piecewise_constant_schedule(
            config.learning_rate, {steps * epoch: 0.1 for epoch in config.drops}
        )
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=jp.matrices),
        optax.sgd(schedule, config.momentum, nesterov=True),
    )


def cross_entropy(logits: jax.Array, labels: jax.Array, temperature: Any) -> jax.Array:
    """The mean cross-entropy of ``logits / temperature``."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits / temperature, labels
    )
    return losses.mean()


def gradients(
    network: Network,
    dataset: Dataset,
    state: State,
    batch: Split,
    key: jax.Array,
    *,
    augmented: bool,
    temperature: float = 1.0,
    sparse: Callable[..., Any] = lambda loss: loss,
) -> tuple[jax.Array, Any, Any]:
    """The loss of a batch of uint8 images, the new statistics, and the gradient.

    ``sparse(loss) -> loss`` runs the loss through a sparse forward pass.
    """
    images = dataset.standardize(batch.images)
    if augmented:
        images = augment(key, images)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, new = network.apply(params, state.stats, images, train=True)
        return cross_entropy(logits, batch.labels, temperature), new

    differentiate = jax.value_and_grad(sparse(loss), has_aux=True)
    (value, stats), grads = differentiate(state.params)
    return value, stats, grads


def update(
    tx: optax.GradientTransformation, state: State, stats: Any, grads: Any
) -> State:
    """One update. K-starts reads the raw gradient, so it is passed too."""
    tx = optax.with_extra_args_support(tx)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, grad=grads)
    return State(optax.apply_updates(state.params, updates), stats, opt_state)


def evaluate(network: Network, params: Any, stats: Any, images: jax.Array) -> jax.Array:
    """The logits of standardized images in eval mode."""
    return network.apply(params, stats, images, train=False)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """A method's view of one network: eval mode, fixed statistics, one batch."""

    key: jax.Array
    stats: Any
    batch: Split  # Standardized images, float32.
    network: Network = dataclasses.field(metadata={"static": True})
    options: Pruning = dataclasses.field(metadata={"static": True})
    invert: bool = dataclasses.field(default=False, metadata={"static": True})

    def logits(self, params: Any, images: jax.Array, *_: Any) -> jax.Array:
        return evaluate(self.network, params, self.stats, images)

    def loss(
        self, params: Any, images: jax.Array, labels: jax.Array, *, temperature: Any = 1
    ) -> jax.Array:
        return cross_entropy(self.logits(params, images), labels, temperature)

    def rank(self, scores: Any) -> Any:
        """The scores, negated if those that score lowest stay."""
        return jax.tree.map(jnp.negative, scores) if self.invert else scores
