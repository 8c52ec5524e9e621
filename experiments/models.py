"""The networks, in Flax NNX, and the two pure functions that experiments call.

A network is ``init`` and ``apply`` over plain pytrees: ``params`` (what is trained and
pruned) and ``stats`` (BatchNorm's running statistics).
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import Model


class Network(NamedTuple):
    """A model as pure functions.

    Attributes:
      init: ``init(key) -> (params, stats)``.
      apply: ``apply(params, stats, images, *, train) -> (logits, stats)``. BatchNorm
        uses the batch and moves ``stats`` in training, and uses ``stats`` otherwise.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[..., tuple[jax.Array, Any]]


def network(config: Model, image_shape: tuple[int, ...], classes: int) -> Network:
    """Builds the network for images of shape ``[height, width, channels]``."""

    def build(key: jax.Array) -> nnx.Module:
        return MODELS[config.name](config, image_shape, classes, nnx.Rngs(key))

    def init(key: jax.Array) -> tuple[Any, Any]:
        _, params, stats = nnx.split(build(key), nnx.Param, ...)
        return params, stats

    model = nnx.eval_shape(lambda: build(jax.random.key(0)))
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    train_graph = nnx.graphdef(model)

    def apply(
        params: Any, stats: Any, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        graph = train_graph if train else eval_graph
        model: Any = nnx.merge(graph, params, stats, copy=True)
        logits = model(images)
        return logits, nnx.state(model, nnx.Not(nnx.Param))

    return Network(init, apply)


class LeNet(nnx.Module):
    """LeNet-300-100 and its like: hidden layers with ReLU."""

    def __init__(
        self, config: Model, image_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs
    ):
        sizes = (math.prod(image_shape), *config.widths)
        self.layers = nnx.List(
            nnx.Linear(a, b, kernel_init=_HE, rngs=rngs)
            for a, b in itertools.pairwise(sizes)
        )
        self.output = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.output(x)


class ConvNet(nnx.Module):
    """3x3 convolutions with BatchNorm and ReLU; all but the first halve the image."""

    def __init__(
        self, config: Model, image_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs
    ):
        widths = (image_shape[-1], *config.widths)
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


class ResNet(nnx.Module):
    """The residual networks of He et al. for CIFAR: 6 x blocks + 2 layers."""

    def __init__(
        self, config: Model, image_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs
    ):
        width = config.widths[0]
        layers: list[nnx.Module] = [
            ConvNorm(image_shape[-1], width, 1, config.convolution, rngs)
        ]
        for stage, out in enumerate(config.widths):
            for block in range(config.blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                layers.append(Residual(width, out, strides, config.convolution, rngs))
                width = out
        self.layers = nnx.List(layers)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        first, *blocks = self.layers
        x = nnx.relu(first(images))
        for block in blocks:
            x = block(x)
        return self.output(x.mean((1, 2)))


class Residual(nnx.Module):
    """Two convolutions beside a shortcut without parameters (option A of the paper)."""

    def __init__(
        self, inputs: int, outputs: int, strides: int, convolution: str, rngs: nnx.Rngs
    ):
        self.strides = strides
        self.added = outputs - inputs
        self.first = ConvNorm(inputs, outputs, strides, convolution, rngs)
        self.second = ConvNorm(outputs, outputs, 1, convolution, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x[:, :: self.strides, :: self.strides]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.added)))
        return nnx.relu(shortcut + self.second(nnx.relu(self.first(x))))


class ConvNorm(nnx.Module):
    """A 3x3 convolution without bias, and BatchNorm."""

    def __init__(
        self, inputs: int, outputs: int, strides: int, convolution: str, rngs: nnx.Rngs
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (3, 3),
            strides=strides,
            use_bias=False,
            kernel_init=_HE,
            conv_general_dilated=_CONVOLUTIONS[convolution],
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


def _by_patches(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: str,
    **options: Any,
) -> jax.Array:
    """A SAME convolution as one matrix product over gathered patches.

    On CPUs XLA runs a convolution twenty times slower inside ``lax.scan`` than outside,
    where training has it; a matrix product is as fast.
    """
    del padding, options
    rows, columns, _, outputs = kernel.shape
    step_y, step_x = strides
    height, width = images.shape[1:3]
    out_y, out_x = -(-height // step_y), -(-width // step_x)
    pad_y = max((out_y - 1) * step_y + rows - height, 0)
    pad_x = max((out_x - 1) * step_x + columns - width, 0)
    sides = ((pad_y // 2, pad_y - pad_y // 2), (pad_x // 2, pad_x - pad_x // 2))
    padded = jnp.pad(images, ((0, 0), *sides, (0, 0)))
    patches = [
        padded[
            :,
            y : y + (out_y - 1) * step_y + 1 : step_y,
            x : x + (out_x - 1) * step_x + 1 : step_x,
        ]
        for y in range(rows)
        for x in range(columns)
    ]
    # Channels keep an axis of their own, so that jaxprune.structured can follow them.
    kernel = kernel.reshape(rows * columns, -1, outputs)
    return jnp.einsum("...pc,pco->...o", jnp.stack(patches, axis=-2), kernel)


_HE = nnx.initializers.he_normal()
_CONVOLUTIONS = {"xla": jax.lax.conv_general_dilated, "patches": _by_patches}

MODELS = {"lenet": LeNet, "convnet": ConvNet, "resnet": ResNet}
