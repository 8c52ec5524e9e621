"""The two networks that scores and steps are timed on."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Problem(NamedTuple):
    """A network, its loss and one batch.

    Attributes:
      name: what it is, in a word.
      description: its layers, its number of weights and the batch size.
      apply: ``apply(params, images) -> logits``.
      loss: ``loss(params, images, labels) -> scalar``.
      params: the weights.
      batch: images and labels.
    """

    name: str
    description: str
    apply: Callable[..., jax.Array]
    loss: Callable[..., jax.Array]
    params: Any
    batch: tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Networks:
    """Which networks to time, and how large."""

    names: tuple[Literal["mlp", "resnet"], ...] = ("mlp", "resnet")
    """Which of the two."""
    batch_size: int = 128
    """Examples in the batch."""
    widths: tuple[int, ...] = (784, 1024, 1024, 10)
    """The layers of the MLP."""
    blocks: int = 1
    """Residual blocks a stage of the ResNet; 3 is ResNet-20."""
    channels: int = 16
    """Channels of the ResNet's first stage."""
    side: int = 32
    """Pixels along a side of the ResNet's images."""

    def build(self) -> list[Problem]:
        """Makes the networks."""
        makers = {
            "mlp": lambda: mlp(self.widths, self.batch_size),
            "resnet": lambda: resnet(
                self.blocks, self.channels, self.side, self.batch_size
            ),
        }
        return [makers[name]() for name in self.names]


def mlp(widths: tuple[int, ...], batch_size: int) -> Problem:
    """A multilayer perceptron with ReLU, on noise of its input's width."""
    rngs = nnx.Rngs(0)
    stack: list[Any] = []
    for width, following in itertools.pairwise(widths):
        stack += [nnx.Linear(width, following, rngs=rngs), nnx.relu]
    model = nnx.Sequential(*stack[:-1])
    layers = f"widths {'-'.join(map(str, widths))}"
    return _problem("MLP", layers, model, widths[:1], batch_size)


def resnet(blocks: int, width: int, side: int, batch_size: int) -> Problem:
    """A ResNet for CIFAR of 6 · blocks + 2 layers, BatchNorm in eval mode, on noise."""
    model = _ResNet(blocks, width, rngs=nnx.Rngs(0))
    layers = f"{width} to {4 * width} channels on {side}x{side} images"
    shape = (side, side, 3)
    return _problem(f"ResNet-{6 * blocks + 2}", layers, model, shape, batch_size)


class _Block(nnx.Module):
    """Two convolutions around a shortcut, which is 1x1 where the width changes."""

    def __init__(self, width: int, following: int, rngs: nnx.Rngs) -> None:
        stride = 1 if width == following else 2
        self.conv1 = _conv(width, following, 3, stride, rngs)
        self.conv2 = _conv(following, following, 3, 1, rngs)
        self.norm1 = nnx.BatchNorm(following, rngs=rngs)
        self.norm2 = nnx.BatchNorm(following, rngs=rngs)
        self.shortcut = (
            _conv(width, following, 1, stride, rngs) if stride == 2 else lambda x: x
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _ResNet(nnx.Module):
    """He et al.'s ResNet for CIFAR (2016, Section 4.2), with 1x1 shortcuts."""

    def __init__(self, blocks: int, width: int, rngs: nnx.Rngs) -> None:
        self.stem = _conv(3, width, 3, 1, rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        widths = [w for w in (width, 2 * width, 4 * width) for _ in range(blocks)]
        pairs = zip([width, *widths[:-1]], widths, strict=True)
        self.blocks = nnx.List([_Block(a, b, rngs) for a, b in pairs])
        self.head = nnx.Linear(4 * width, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


def _conv(width: int, following: int, size: int, stride: int, rngs: nnx.Rngs) -> Any:
    return nnx.Conv(
        width, following, (size, size), strides=stride, use_bias=False, rngs=rngs
    )


def _problem(
    name: str,
    layers: str,
    model: nnx.Module,
    shape: tuple[int, ...],
    batch_size: int,
) -> Problem:
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params, rest, copy=True)(images)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = apply(params, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    images = jax.random.normal(jax.random.key(1), (batch_size, *shape))
    labels = jax.random.randint(jax.random.key(2), (batch_size,), 0, 10)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    description = f"{name}: {layers}, {size:,} weights, batches of {batch_size}."
    return Problem(name, description, apply, loss, params, (images, labels))
