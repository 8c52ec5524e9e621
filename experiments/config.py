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
    "trained_magnitude",
    "lamp",
    "blocks",
    "earlycrop",
    "epi",
    "drive",
    "imp",
    "k_starts",
    "dissipating",
    "k_starts_dissipating",
    "k_starts_independent",
    "random_dropout",
    "static",
    "eoi",
    "set",
    "rigl",
    "granet",
    "ac_dc",
    "ste",
    "top_kast",
    "sr_ste",
    "gradual_n_m",
    "iterative_snip",
    "force",
    "prospr",
]

TWO_OF_FOUR: tuple[Method, ...] = ("sr_ste", "gradual_n_m")
"""These remove half of the weights, whatever the sparsities asked for."""

Checked = Literal[
    "magnitude",
    "snip",
    "grasp",
    "synflow",
    "biased_loss",
    "gradient_preservation",
    "trained_magnitude",
    "lamp",
    "blocks",
    "earlycrop",
    "epi",
    "drive",
    "imp",
    "iterative_snip",
    "force",
    "prospr",
]
"""Methods that score weights once and for all, so that the checks mean something."""

Check = Literal["shuffled", "redrawn", "inverted"]

Measure = Literal[
    "magnitude",
    "loss_preservation",
    "biased_loss",
    "biased_loss_from_start",
    "biased_loss_tracked",
    "grasp",
    "gradient_preservation",
    "taylor",
    "fisher",
    "l1",
    "bn_scale",
    "random",
    "uniform",
]

Level = Literal["filters", "weights"]


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
    ablated: tuple[Literal["drive", "k_starts", "dissipating"], ...] = ()
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
    """At its start."""
    drops: tuple[int, ...] = ()
    """Epochs after which it falls to a tenth; without any, a cosine takes it to 0."""
    momentum: float = 0.9
    """Nesterov's."""
    weight_decay: float = 5e-4
    """Of the matrices and kernels, added to the gradient."""
    workdir: pathlib.Path | None = None
    """Where the results go; None is runs/<name>."""

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_fractions("sparsities", self.pruning.sparsities)
        if self.pruning.rewind >= self.epochs:
            raise ValueError(
                f"rewind is {self.pruning.rewind} of {self.epochs} epochs: leave at "
                "least one to train from there."
            )
        warms_up = {"drive", "trained_magnitude", "lamp", "blocks"}
        warms_up &= set(self.pruning.methods)
        if warms_up and self.pruning.warmup >= self.epochs:
            raise ValueError(
                f"warmup is {self.pruning.warmup} of {self.epochs} epochs: leave at "
                "least one to train once pruned."
            )


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Pruning while training: an epoch, score, prune, in rounds; then to the end.

    The pipeline of Lubana & Dick (2021): every measure at every level, fraction and
    number of rounds, over the same seeds.
    """

    data: Data = Data()
    model: Model = Model()
    measures: tuple[Measure, ...] = (
        "magnitude",
        "loss_preservation",
        "biased_loss",
        "grasp",
        "gradient_preservation",
        "random",
    )
    """What is compared with the dense network, which always runs."""
    levels: tuple[Level, ...] = ("filters", "weights")
    """Whole filters, or single weights: as many as the filters of the same run took."""
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Fractions of all filters removed in the end."""
    rounds: tuple[int, ...] = (1, 5)
    """In how many rounds, one an epoch, along the hyperbolic schedule."""
    min_keep: float = 0.05
    """Of every group of filters this fraction stays, and one more: the best."""
    examples_per_class: int = 20
    """Training images of each class in the batches that are scored."""
    temperature: float = 5.0
    """What the logits are divided by in the loss, to train and to score."""
    grasp_temperature: float = 200.0
    """The same where GraSP scores; gradient preservation always takes 1."""
    tracked_weight: float = 0.8
    """Of the newest minibatch in the tracked biased loss's moving average."""
    seed: int = 0
    """The root of all random keys."""
    seeds: int = 3
    """Networks trained for each row."""
    epochs: int = 20
    """In all, those of the rounds included."""
    batch_size: int = 64
    learning_rate: float = 0.1
    """At its start; a tenth from half of the epochs on, a hundredth from 3/4 on."""
    momentum: float = 0.9
    """Set back to 0 at every pruning."""
    weight_decay: float = 1e-4
    """Of all parameters, added to the gradient."""
    workdir: pathlib.Path | None = None
    """Where the results go; None is runs/<name>. Finished runs in it are kept."""

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_fractions("fractions", self.fractions)
        if max(self.rounds) >= self.epochs:
            raise ValueError(
                f"rounds holds {max(self.rounds)}, one an epoch, but there are "
                f"{self.epochs} epochs: leave at least one to train in the end."
            )


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How one network is spread over devices and processes."""

    fsdp: int = 1
    """Devices that each parameter is split over, -1 for all; the others hold copies."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters and scores are float32 in any case."""
    microbatches: int = 1
    """Parts of a batch, one after the other, whose gradients are averaged."""
    distributed: bool = False
    """Many processes: find the others by jax.distributed.initialize."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """What is kept of a run to go on from."""

    every: int = 500
    """Optimiser steps between checkpoints, written while training goes on."""
    keep: int = 3
    """The newest that are kept."""


@dataclasses.dataclass(frozen=True)
class Logging:
    """What is written while training."""

    every: int = 50
    """Optimiser steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write the same for TensorBoard; needs the extra "tensorboard"."""
    profile: int = 0
    """Optimiser steps to trace with JAX's profiler, once all is compiled."""


@dataclasses.dataclass(frozen=True)
class Scaled:
    """One network with one method, on all devices of one process or of many."""

    data: Data = Data()
    model: Model = Model()
    method: Method = "snip"
    """All but "imp" and "k_starts_independent", which train several networks."""
    sparsity: float = 0.9
    """Fraction of the prunable weights removed."""
    pruning: Pruning = Pruning()
    """The options of the method; what it says of a comparison is not read."""
    parallel: Parallel = Parallel()
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    seed: int = 0
    """The root of all random keys."""
    epochs: int = 20
    batch_size: int = 256
    """Images in a batch, over all devices and microbatches."""
    learning_rate: float = 0.1
    """At its start."""
    drops: tuple[int, ...] = ()
    """Epochs after which it falls to a tenth; without any, a cosine takes it to 0."""
    momentum: float = 0.9
    """Nesterov's."""
    weight_decay: float = 5e-4
    """Of the matrices and kernels, added to the gradient."""
    workdir: pathlib.Path | None = None
    """Where checkpoints and metrics go; None is runs/<name>. A run that is there goes
    on where it stood."""

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_fractions("sparsity", (self.sparsity,))
        counts = {
            "parallel.microbatches": self.parallel.microbatches,
            "checkpoints.every": self.checkpoints.every,
            "checkpoints.keep": self.checkpoints.keep,
            "logging.every": self.logging.every,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}; it is at least 1.")
        if self.method in ("imp", "k_starts_independent"):
            raise ValueError(
                f"{self.method!r} trains several networks to find one mask: run it as "
                "a comparison, such as digits."
            )
        if self.method in ("eoi", "earlycrop", "epi"):
            raise ValueError(
                f"{self.method!r} decides on weights or epochs outside the compiled "
                "programs: run it as a comparison, such as digits_early."
            )


def _check_counts(config: Config | Rounds | Scaled) -> None:
    for name in ("seeds", "epochs", "batch_size"):
        count = getattr(config, name, 1)
        if count < 1:
            raise ValueError(f"{name} is {count}; it is at least 1.")


def _check_fractions(name: str, fractions: tuple[float, ...]) -> None:
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise ValueError(
                f"{name} holds {fraction}; it is a fraction that is removed, in [0, 1)."
            )
