"""MobileNet-V1 for small images."""

import itertools

import jax
from flax import nnx

from experiments.config import Model
from experiments.models._layers import ConvNorm, Shape


class MobileNet(nnx.Module):
    """A 3x3 stem, then depthwise-separable blocks: one for each further width.

    The image is halved where the width doubles, except in the first block (Howard et
    al., 2017, Table 1, without the strides that small images have no pixels for).
    """

    def __init__(self, config: Model, shape: Shape, classes: int, rngs: nnx.Rngs):
        stem, *widths = config.widths
        self.stem = ConvNorm(shape[-1], stem, 1, config.convolution, rngs)
        self.blocks = nnx.List(
            Separable(a, b, 2 if b > a and i > 0 else 1, config.convolution, rngs)
            for i, (a, b) in enumerate(itertools.pairwise((stem, *widths)))
        )
        self.output = nnx.Linear(config.widths[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean((1, 2)))


class Separable(nnx.Module):
    """A depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, strides: int, convolution: str, rngs: nnx.Rngs
    ):
        self.depthwise = ConvNorm(
            inputs, inputs, strides, convolution, rngs, groups=inputs
        )
        self.pointwise = ConvNorm(inputs, outputs, 1, convolution, rngs, size=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.pointwise(nnx.relu(self.depthwise(x))))
