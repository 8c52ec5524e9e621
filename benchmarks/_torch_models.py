"""The networks of `experiments.models` once more, in PyTorch, for its pruning tool.

Layers, widths, paddings and shortcuts are the same, so are the numbers of parameters.
"""

import itertools
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from experiments.config import Model


def build(config: Model, side: int, classes: int = 10) -> nn.Module:
    """Makes the twin of the network that ``config`` describes."""
    twins = {"vgg": VGG, "mobilenet": MobileNet, "resnet": ResNet}
    if config.name == "vit":
        return ViT(config, side, classes).eval()
    return twins[config.name](config, classes).eval()


def conv_norm(
    inputs: int, outputs: int, size: int = 3, strides: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution without bias, and BatchNorm."""
    conv = nn.Conv2d(
        inputs, outputs, size, strides, size // 2, groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(outputs)]


class VGG(nn.Module):
    """Convolution, ReLU, BatchNorm; pooling ends a stage."""

    def __init__(self, config: Model, classes: int):
        super().__init__()
        layers, width = [], 3
        for out, blocks in config.stages():
            for _ in range(blocks):
                conv, norm = conv_norm(width, out)
                layers += [conv, nn.ReLU(), norm]
                width = out
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        return self.output(self.layers(x).mean((2, 3)))


class MobileNet(nn.Module):
    """A stem and depthwise-separable blocks."""

    def __init__(self, config: Model, classes: int):
        super().__init__()
        layers = [*conv_norm(3, config.widths[0]), nn.ReLU()]
        for i, (a, b) in enumerate(itertools.pairwise(config.widths)):
            strides = 2 if b > a and i > 0 else 1
            layers += [*conv_norm(a, a, 3, strides, a), nn.ReLU()]
            layers += [*conv_norm(a, b, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(config.widths[-1], classes)

    def forward(self, x: Any) -> Any:
        return self.output(self.layers(x).mean((2, 3)))


class ResNet(nn.Module):
    """A stem and stages of residual blocks with 1x1 shortcuts."""

    def __init__(self, config: Model, classes: int):
        super().__init__()
        width = config.widths[0]
        layers = [*conv_norm(3, width), nn.ReLU()]
        if config.stem == "imagenet":
            layers = [*conv_norm(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        for stage, (out, blocks) in enumerate(config.stages()):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                layers.append(Residual(width, out, strides, config.block))
                width = out * (4 if config.block == "bottleneck" else 1)
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        return self.output(self.layers(x).mean((2, 3)))


class Residual(nn.Module):
    """A basic or a bottleneck block."""

    def __init__(self, inputs: int, width: int, strides: int, block: str):
        super().__init__()
        if block == "basic":
            outputs = width
            branch = [*conv_norm(inputs, width, 3, strides), nn.ReLU()]
            branch += conv_norm(width, width)
        else:
            outputs = 4 * width
            branch = [*conv_norm(inputs, width, 1), nn.ReLU()]
            branch += [*conv_norm(width, width, 3, strides), nn.ReLU()]
            branch += conv_norm(width, outputs, 1)
        self.branch = nn.Sequential(*branch)
        changes = strides > 1 or inputs != outputs
        shortcut = conv_norm(inputs, outputs, 1, strides) if changes else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.shortcut(x) + self.branch(x))


class ViT(nn.Module):
    """Patches, positions, pre-norm blocks, the mean of the tokens."""

    def __init__(self, config: Model, side: int, classes: int):
        super().__init__()
        ((width, blocks),) = config.stages()
        self.embed = nn.Conv2d(3, width, config.patch, config.patch)
        tokens = (side // config.patch) ** 2
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(
            *[Block(width, config.heads) for _ in range(blocks)]
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.output = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        return self.output(self.norm(self.blocks(x)).mean(1))


class Block(nn.Module):
    """Attention and a multilayer perceptron on a normalised residual stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        hidden = nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.down(hidden)


class Attention(nn.Module):
    """Multi-head self-attention whose number of heads follows its widths."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        split = (x.shape[0], x.shape[1], -1, self.size)
        q, k, v = (
            f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))
