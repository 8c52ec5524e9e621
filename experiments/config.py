"""Every option of an experiment, once, with its default and its unit."""

import dataclasses
import pathlib
from typing import Literal, get_args

Method = Literal[
    "random",
    "magnitude",
    "snip",
    "grasp",
    "synflow",
    "biased_loss",
    "gradient_preservation",
    "gradual",
]


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, and how they are split."""

    name: str = "digits"
    """scikit-learn's bundled "digits", or an image data set of TFDS."""
    dir: str | None = None
    """The TFDS data directory; None is TFDS's own default."""
    train_size: int | None = None
    """Images to train on; None takes all that validation leaves."""
    validation_size: int = 360
    """Images carved from the training images, as many of each class."""
    test_size: int | None = None
    """Images to test on; None takes the whole test set."""
    augment: bool = False
    """Random crops (4 pixels of padding) and horizontal flips while training."""
    seed: int = 0
    """Of the splits, which all runs share."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Which network."""

    name: Literal["lenet", "convnet", "resnet"] = "convnet"
    """A multilayer perceptron, a plain convolutional net, or a residual one."""
    widths: tuple[int, ...] = (8, 16, 32)
    """Units of each hidden layer, filters of each convolution or of each stage."""
    blocks: int = 3
    """Residual blocks in a stage of "resnet": 3 for ResNet-20."""
    convolution: Literal["xla", "patches"] = "xla"
    """XLA's own, or patches and a matrix product: ten times faster on CPUs."""


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What is compared, and how the masks are found."""

    methods: tuple[Method, ...] = get_args(Method)
    """What is compared with the dense network, which always runs."""
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    """Fractions of the prunable weights removed."""
    examples_per_class: int = 10
    """Training images of each class in the batch that is scored."""
    grasp_temperature: float = 200.0
    """What the logits are divided by when GraSP scores, as in its authors' code."""
    rounds: int = 100
    """Score-and-prune rounds of SynFlow."""
    every: int = 20
    """Optimiser steps between mask updates of gradual pruning."""
    until: float = 0.6
    """Fraction of training after which gradual pruning has reached its sparsity."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison: every method at every sparsity, over several seeds."""

    data: Data = Data()
    model: Model = Model()
    pruning: Pruning = Pruning()
    seed: int = 0
    """The root of all random keys."""
    seeds: int = 5
    """Networks trained for each method and sparsity."""
    over_seeds: Literal["map", "vmap"] = "map"
    """One seed after the other, or all at once: what pays depends on the hardware."""
    epochs: int = 20
    batch_size: int = 64
    """Images in a batch, for each network."""
    learning_rate: float = 0.1
    """At its start; a cosine takes it to 0."""
    momentum: float = 0.9
    """Nesterov's."""
    weight_decay: float = 5e-4
    """Of the matrices and kernels, added to the gradient."""
    workdir: pathlib.Path | None = None
    """Where the results go; None is runs/<name>."""

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1.")
        for sparsity in self.pruning.sparsities:
            if not 0 <= sparsity < 1:
                raise ValueError(
                    f"sparsities holds {sparsity}; a sparsity is the fraction of "
                    "weights removed, in [0, 1)."
                )
