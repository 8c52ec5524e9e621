"""Wide residual networks."""

import jax
from flax import nnx

from experiments.config import Model
from experiments.models._layers import conv


class WideResNet(nnx.Module):
    """The wide residual networks of Zagoruyko & Komodakis (2016), for small images.

    BatchNorm and ReLU come before each convolution. A 3x3 stem of 16 filters is
    followed by a stage a width, all but the first of which halve the image.
    """

    def __init__(
        self, config: Model, image_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs
    ):
        width = 16
        self.stem = conv(image_shape[-1], width, 3, config.convolution, rngs)
        layers = []
        for stage, (out, blocks) in enumerate(config.stages()):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                layers.append(Preactivated(width, out, strides, config, rngs))
                width = out
        self.layers = nnx.List(layers)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x)
        return self.output(nnx.relu(self.norm(x)).mean((1, 2)))


class Preactivated(nnx.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, beside a shortcut.

    Where shapes change, the shortcut is a 1x1 convolution of what was activated.
    """

    def __init__(
        self, inputs: int, outputs: int, strides: int, config: Model, rngs: nnx.Rngs
    ):
        how = config.convolution
        self.first_norm = nnx.BatchNorm(inputs, momentum=0.9, rngs=rngs)
        self.first = conv(inputs, outputs, 3, how, rngs, strides=strides)
        self.second_norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.second = conv(outputs, outputs, 3, how, rngs)
        self.shortcut = (
            conv(inputs, outputs, 1, how, rngs, strides=strides)
            if strides > 1 or inputs != outputs
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        active = nnx.relu(self.first_norm(x))
        y = self.second(nnx.relu(self.second_norm(self.first(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))
