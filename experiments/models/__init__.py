"""The networks, in Flax NNX, as pairs of pure functions.

``params`` are trained and pruned, and ``stats`` are BatchNorm's running statistics.
`PUBLISHED` has the options of networks that papers name. `llama` is a module of
functions in plain JAX.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from experiments.config import Model
from experiments.models import _llama as llama  # noqa: F401
from experiments.models._mobilenet import MobileNet
from experiments.models._plain import VGG, ConvNet, LeNet, LeNet5
from experiments.models._resnet import ResNet, WideResNet
from experiments.models._vit import ViT


class Network(NamedTuple):
    """A model as pure functions.

    They are ``init(key) -> (params, stats)`` and ``apply(params, stats, images, *,
    train) -> (logits, stats)``. In training BatchNorm uses the batch and updates
    ``stats``; otherwise it uses ``stats``.
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


MODELS = {
    "lenet": LeNet,
    "lenet5": LeNet5,
    "convnet": ConvNet,
    "vgg": VGG,
    "mobilenet": MobileNet,
    "resnet": ResNet,
    "wide_resnet": WideResNet,
    "vit": ViT,
}

_MOBILE = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
_WIDE = (64, 128, 256, 512)
PUBLISHED = {
    "lenet300": Model("lenet", (300, 100)),
    "lenet5": Model("lenet5", (20, 50, 500)),  # Caffe's, as in SNIP's paper.
    "vgg13": Model("vgg", (64, 128, 256, 512, 512), 2),
    "vgg16": Model("vgg", (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)),
    "mobilenet_v1": Model("mobilenet", _MOBILE),
    "resnet18": Model("resnet", _WIDE, 2, shortcut="project"),
    "resnet20": Model("resnet", (16, 32, 64), 3),
    "resnet50": Model(
        "resnet",
        _WIDE,
        (3, 4, 6, 3),
        block="bottleneck",
        shortcut="project",
        stem="imagenet",
    ),
    "resnet56": Model("resnet", (16, 32, 64), 9, shortcut="project"),
    "wrn22_2": Model("wide_resnet", (32, 64, 128), 3),
    "vit": Model("vit", (256,), 6),  # Ours: no paper has it.
}
