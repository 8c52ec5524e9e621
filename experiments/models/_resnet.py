"""Residual networks, for small and for large images, and wide ones."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import Model
from experiments.models._layers import ConvNorm, Shape, batch_norm, conv


class ResNet(nnx.Module):
    """The residual networks of He et al. (2016); a stage a width.

    The stem is a 3x3 convolution, or, for large images, a 7x7 one and 3x3 pooling that
    halve the image twice. All stages but the first halve it again.
    """

    def __init__(self, config: Model, shape: Shape, classes: int, rngs: nnx.Rngs):
        self.pools = config.stem == "imagenet"
        size, strides = (7, 2) if self.pools else (3, 1)
        width, convolution = config.widths[0], config.convolution
        layers: list[nnx.Module] = [
            ConvNorm(shape[-1], width, strides, convolution, rngs, size=size)
        ]
        block_type = {"basic": Residual, "bottleneck": Bottleneck}[config.block]
        for out, strides in _blocks(config):
            layers.append(block_type(width, out, strides, config, rngs))
            width = out * block_type.expansion
        self.layers = nnx.List(layers)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        first, *blocks = self.layers
        x = nnx.relu(first(images))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for block in blocks:
            x = block(x)
        return self.output(x.mean((1, 2)))


def _blocks(config: Model) -> list[tuple[int, int]]:
    """The width and the strides of every block."""
    return [
        (width, 2 if stage > 0 and block == 0 else 1)
        for stage, (width, blocks) in enumerate(config.stages())
        for block in range(blocks)
    ]


class Residual(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, inputs: int, outputs: int, strides: int, config: Model, rngs: nnx.Rngs
    ):
        self.first = ConvNorm(inputs, outputs, strides, config.convolution, rngs)
        self.second = ConvNorm(outputs, outputs, 1, config.convolution, rngs)
        self.shortcut = _shortcut(inputs, outputs, strides, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(self.shortcut(x) + y)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut.

    The 3x3 convolution has the strides, as in the networks that are in use, where the
    paper's first 1x1 has.
    """

    expansion = 4

    def __init__(
        self, inputs: int, width: int, strides: int, config: Model, rngs: nnx.Rngs
    ):
        outputs, convolution = self.expansion * width, config.convolution
        self.first = ConvNorm(inputs, width, 1, convolution, rngs, size=1)
        self.second = ConvNorm(width, width, strides, convolution, rngs)
        self.third = ConvNorm(width, outputs, 1, convolution, rngs, size=1)
        self.shortcut = _shortcut(inputs, outputs, strides, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.second(nnx.relu(self.first(x))))
        return nnx.relu(self.shortcut(x) + self.third(y))


class Pad(nnx.Module):
    """A shortcut without parameters: zeros for new channels (the paper's option A)."""

    def __init__(self, added: int, strides: int):
        self.added, self.strides = added, strides

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[:, :: self.strides, :: self.strides]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.added)))


def _shortcut(
    inputs: int, outputs: int, strides: int, config: Model, rngs: nnx.Rngs
) -> Any:
    """The identity where shapes are equal; elsewhere zeros or a 1x1 convolution."""
    if config.shortcut == "project" and (strides > 1 or inputs != outputs):
        return ConvNorm(inputs, outputs, strides, config.convolution, rngs, size=1)
    return Pad(outputs - inputs, strides)


class WideResNet(nnx.Module):
    """The wide residual networks of Zagoruyko & Komodakis (2016), for small images.

    BatchNorm and ReLU come before each convolution, and the 3x3 stem has 16 filters.
    """

    def __init__(self, config: Model, shape: Shape, classes: int, rngs: nnx.Rngs):
        width = 16
        self.stem = conv(shape[-1], width, 3, config.convolution, rngs)
        layers = []
        for out, strides in _blocks(config):
            layers.append(Preactivated(width, out, strides, config, rngs))
            width = out
        self.layers = nnx.List(layers)
        self.norm = batch_norm(width, rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x)
        return self.output(nnx.relu(self.norm(x)).mean((1, 2)))


class Preactivated(nnx.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, and a shortcut.

    Where shapes change, the shortcut is a 1x1 convolution of the activations.
    """

    def __init__(
        self, inputs: int, outputs: int, strides: int, config: Model, rngs: nnx.Rngs
    ):
        how = config.convolution
        self.first_norm = batch_norm(inputs, rngs)
        self.first = conv(inputs, outputs, 3, how, rngs, strides=strides)
        self.second_norm = batch_norm(outputs, rngs)
        self.second = conv(outputs, outputs, 3, how, rngs)
        same = strides == 1 and inputs == outputs
        self.shortcut = (
            None if same else conv(inputs, outputs, 1, how, rngs, strides=strides)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        active = nnx.relu(self.first_norm(x))
        y = self.second(nnx.relu(self.second_norm(self.first(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))
