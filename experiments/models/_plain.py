"""Networks without branches: LeNets, a plain convolutional network, and VGG."""

import itertools
import math

import jax
from flax import nnx

from experiments.config import Model
from experiments.models._layers import HE, ConvNorm, Shape, batch_norm, conv


class LeNet(nnx.Module):
    """LeNet-300-100 and its like: hidden layers with ReLU."""

    def __init__(self, config: Model, shape: Shape, classes: int, rngs: nnx.Rngs):
        self.layers = _hidden((math.prod(shape), *config.widths), rngs)
        self.output = nnx.Linear(config.widths[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.output(x)


def _hidden(sizes: Shape, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(
        nnx.Linear(a, b, kernel_init=HE, rngs=rngs)
        for a, b in itertools.pairwise(sizes)
    )


class LeNet5(nnx.Module):
    """LeNet-5: two 5x5 convolutions with 2x2 pooling, then dense layers.

    As in Caffe and the pruning papers, pooling takes the maximum and ReLU is the
    nonlinearity, where LeCun et al. (1998) have averages and tanh; and the second
    convolution sees all channels of the first.
    """

    def __init__(self, config: Model, shape: Shape, classes: int, rngs: nnx.Rngs):
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[:2])
        if min(height, width) < 1:
            raise ValueError(
                f"LeNet-5 takes images of 16x16 pixels or more; these are "
                f"{shape[0]}x{shape[1]}."
            )
        if len(config.widths) < 2:
            raise ValueError(
                "The widths of LeNet-5 are the filters of its two convolutions, then "
                f"the units of its hidden layers; got {config.widths}."
            )
        first, second, *hidden = config.widths
        self.convs = nnx.List(
            conv(a, b, 5, config.convolution, rngs, padding="VALID", use_bias=True)
            for a, b in itertools.pairwise((shape[-1], first, second))
        )
        sizes = (height * width * second, *hidden)
        self.layers = _hidden(sizes, rngs)
        self.output = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for layer in self.convs:
            x = nnx.relu(nnx.max_pool(layer(x), (2, 2), (2, 2)))
        x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.output(x)


class ConvNet(nnx.Module):
    """3x3 convolutions with BatchNorm and ReLU; all but the first halve the image."""

    def __init__(self, config: Model, shape: Shape, classes: int, rngs: nnx.Rngs):
        widths = (shape[-1], *config.widths)
        self.layers = nnx.List(
            ConvNorm(a, b, 1 if i == 0 else 2, config.convolution, rngs)
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.output = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.output(x.mean((1, 2)))


class VGG(nnx.Module):
    """VGG for CIFAR as Lubana & Dick have it: convolution, ReLU, then BatchNorm.

    2x2 pooling ends each stage of ``blocks`` convolutions; one dense layer follows.
    """

    def __init__(self, config: Model, shape: Shape, classes: int, rngs: nnx.Rngs):
        stages, width = [], shape[-1]
        for out, blocks in config.stages():
            widths = itertools.pairwise((width, *[out] * blocks))
            layers = [ReluNorm(a, b, config.convolution, rngs) for a, b in widths]
            stages.append(nnx.List(layers))
            width = out
        self.stages = nnx.List(stages)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for stage in self.stages:
            for layer in stage:
                x = layer(x)
            x = nnx.max_pool(x, (2, 2), (2, 2), padding="SAME")
        return self.output(x.mean((1, 2)))


class ReluNorm(nnx.Module):
    """A 3x3 convolution without bias, ReLU and BatchNorm, in this order."""

    def __init__(self, inputs: int, outputs: int, convolution: str, rngs: nnx.Rngs):
        self.conv = conv(inputs, outputs, 3, convolution, rngs)
        self.norm = batch_norm(outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(nnx.relu(self.conv(x)))
