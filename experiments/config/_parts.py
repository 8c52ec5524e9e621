"""What experiments of all kinds are told: images, network, pruning."""

import dataclasses
from typing import Literal, get_args

from experiments.config._names import TWO_OF_FOUR, Check, Checked, Method


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
    test_split: str = "test"
    """What TFDS calls the images to test on."""
    augment: bool = False
    """Random crops (4 pixels of padding) and horizontal flips while training."""
    seed: int = 0
    """Of the splits, which all runs share."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Which network."""

    name: Literal[
        "lenet",
        "lenet5",
        "convnet",
        "vgg",
        "mobilenet",
        "resnet",
        "wide_resnet",
        "vit",
    ] = "convnet"
    """A multilayer perceptron ("lenet"), a convolutional net, or a transformer."""
    widths: tuple[int, ...] = (8, 16, 32)
    """Units of each hidden layer, filters of each convolution or of each stage."""
    blocks: int | tuple[int, ...] = 3
    """Layers of every stage, or of each: residual blocks (3 for ResNet-20),
    convolutions of "vgg", transformer blocks."""
    block: Literal["basic", "bottleneck"] = "basic"
    """What a stage of "resnet" is made of."""
    shortcut: Literal["pad", "project"] = "pad"
    """Where the shapes of a residual change: zeros, or a 1x1 convolution."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """Of "resnet": a 3x3 convolution, or one of 7x7 and pooling for large images."""
    heads: int = 4
    """Attention heads of "vit"."""
    patch: int = 4
    """Pixels along a side of a patch of "vit"."""
    convolution: Literal["xla", "patches", "mixed"] = "xla"
    """XLA's own; patches and a matrix product, ten times faster to train on CPUs; or
    for each layer what is fast on CPUs outside loops."""

    def stages(self) -> list[tuple[int, int]]:
        """The width and the number of blocks of each stage."""
        blocks = self.blocks
        if isinstance(blocks, int):
            blocks = (blocks,) * len(self.widths)
        if len(blocks) != len(self.widths):
            raise ValueError(
                f"blocks holds {len(blocks)} numbers for {len(self.widths)} widths; "
                "give one for each, or a single number."
            )
        return list(zip(self.widths, blocks, strict=True))


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What is compared, and how the masks are found."""

    methods: tuple[Method, ...] = get_args(Method)[:8]
    """What is compared with the dense network, which always runs."""
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    """Fractions of the prunable weights removed."""
    checked: tuple[Checked, ...] = ()
    """Methods run once more for each of the `checks`, at the `check_sparsity`."""
    checks: tuple[Check, ...] = get_args(Check)
    """The mask shuffled within layers, the weights drawn anew, the scores inverted."""
    ablated: tuple[Literal["drive", "k_starts", "dissipating", "sparse_mup"], ...] = ()
    """Methods whose choices (of terms, of fitness) are run apart, at that sparsity."""
    check_sparsity: float = 0.98
    """Where checks and ablations are run."""
    examples_per_class: int = 10
    """Training images of each class in the batch that is scored."""
    grasp_temperature: float = 200.0
    """What the logits are divided by when GraSP scores, as in its authors' code."""
    rounds: int = 100
    """Score-and-prune rounds of SynFlow, iterative SNIP, FORCE and DRIVE."""
    warmup: int = 1
    """Dense epochs before DRIVE, trained magnitude, LAMP and blocks prune."""
    imp_fraction: float = 0.2
    """Of the weights that are left, what a round of iterative pruning removes."""
    rewind: int = 0
    """The epoch that iterative pruning rewinds the weights to; 0 is initialisation."""
    keep_optimizer: bool = False
    """Rewind the optimizer's momentum to that epoch, too; else it starts from 0."""
    k: int = 100
    """Random masks that K-starts chooses from."""
    k_independent: int = 10
    """The same where it trains a network with each of them before it chooses."""
    select_at: float = 0.2
    """Fraction of training after which K-starts chooses and dissipating begins."""
    every: int = 20
    """Optimiser steps between mask updates, of the methods that prune in training."""
    until: float = 0.6
    """Fraction of training after which these have reached their sparsity."""

    def sparsities_of(self, method: Method) -> tuple[float, ...]:
        """The sparsities that a method is run at."""
        return (0.5,) if method in TWO_OF_FOUR else self.sparsities

    def all_sparsities(self) -> list[float]:
        """Those of all methods, from the lowest."""
        return sorted({s for m in self.methods for s in self.sparsities_of(m)})
