"""Every option of an experiment: its default, its unit and what it may be."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from experiments.measures import MEASURES
from experiments.methods import CHECKS, METHODS

if TYPE_CHECKING:
    Method = Ablated = Check = Measure = str
else:  # The command line offers the names in the tables.
    Method = Literal[tuple(METHODS)]
    Ablated = Literal[tuple(name for name, row in METHODS.items() if row.variants)]
    Check = Literal[tuple(CHECKS)]
    Measure = Literal[tuple(MEASURES)]

Level = Literal["filters", "weights"]


def check_counts(options: Any, *names: str, prefix: str = "") -> None:
    """Refuses counts below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(
                f"{prefix}{name} is {getattr(options, name)}; it is at least 1."
            )


def check_fractions(name: str, fractions: tuple[float, ...]) -> None:
    """Refuses fractions outside [0, 1)."""
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise ValueError(
                f"{name} holds {fraction}; it is a fraction that is removed, in [0, 1)."
            )


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
    """Images held out of the training images, stratified by class."""
    test_size: int | None = None
    """Images to test on; None takes the whole test set."""
    test_split: str = "test"
    """TFDS's name of the split to test on."""
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
    """Units of each hidden layer, or filters of each convolution or stage."""
    blocks: int | tuple[int, ...] = 3
    """Layers of every stage, or of each: residual blocks (3 for ResNet-20),
    convolutions of "vgg", transformer blocks."""
    block: Literal["basic", "bottleneck"] = "basic"
    """The residual block of "resnet"."""
    shortcut: Literal["pad", "project"] = "pad"
    """Where the shapes of a residual change: zeros, or a 1x1 convolution."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """Of "resnet": a 3x3 convolution, or a 7x7 one and pooling for large images."""
    heads: int = 4
    """Attention heads of "vit"."""
    patch: int = 4
    """Pixels along a side of a patch of "vit"."""
    convolution: Literal["xla", "patches", "mixed"] = "xla"
    """XLA's own; patches and a matrix product, ten times faster to train on CPUs; or
    the faster of the two for each layer on CPUs, outside loops."""

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

    methods: tuple[Method, ...] = (
        "random",
        "magnitude",
        "snip",
        "grasp",
        "synflow",
        "biased_loss",
        "gradient_preservation",
        "gradual",
    )
    """What is compared with the dense network, which always runs."""
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    """Fractions of the prunable weights removed."""
    checked: tuple[Method, ...] = ()
    """Methods run once more for each of the `checks`, at the `check_sparsity`."""
    checks: tuple[Check, ...] = tuple(CHECKS)
    """The mask shuffled within layers, the weights redrawn, the scores inverted."""
    ablated: tuple[Ablated, ...] = ()
    """Methods whose variants are run too, at the `check_sparsity`."""
    check_sparsity: float = 0.98
    """Where checks and ablations are run."""
    examples_per_class: int = 10
    """Training images of each class in the batch that is scored."""
    grasp_temperature: float = 200.0
    """GraSP divides the logits by this, as in its authors' code."""
    rounds: int = 100
    """Score-and-prune rounds of SynFlow, iterative SNIP, FORCE and DRIVE."""
    warmup: int = 1
    """Dense epochs before DRIVE, trained magnitude, LAMP and blocks prune."""
    imp_fraction: float = 0.2
    """Fraction of the remaining weights that a round of iterative pruning removes."""
    rewind: int = 0
    """The epoch that iterative pruning rewinds the weights to; 0 is initialization."""
    keep_optimizer: bool = False
    """Rewind the optimizer's momentum to that epoch, too; else it restarts at 0."""
    k: int = 100
    """Random masks that K-starts chooses from."""
    k_independent: int = 10
    """The same where it trains a network with each of them before it chooses."""
    select_at: float = 0.2
    """Fraction of training after which K-starts chooses and dissipating begins."""
    every: int = 20
    """Optimizer steps between mask updates, of the methods that prune in training."""
    until: float = 0.6
    """Fraction of training after which these have reached their sparsity."""

    def __post_init__(self) -> None:
        check_fractions("sparsities", self.sparsities)
        for name in self.checked:
            if not METHODS[name].checks:
                valid = ", ".join(n for n, row in METHODS.items() if row.checks)
                raise ValueError(f"{name!r} has no scores to check; choose of {valid}.")

    def sparsities_of(self, method: str) -> tuple[float, ...]:
        """The sparsities that a method is run at."""
        only_at = METHODS[method].only_at
        return self.sparsities if only_at is None else (only_at,)

    def needing(self, *needs: str) -> list[str]:
        """The methods compared that need one of these."""
        return [name for name in self.methods if METHODS[name].needs in needs]


@dataclasses.dataclass(frozen=True)
class Config:
    """A comparison: every method at every sparsity, over several seeds."""

    data: Data = Data()
    model: Model = Model()
    pruning: Pruning = Pruning()
    seed: int = 0
    """The root of all random keys."""
    seeds: int = 5
    """Networks trained for each method and sparsity."""
    over_seeds: Literal["map", "vmap"] = "map"
    """One seed after the other, or all at once: the faster depends on the hardware."""
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
        check_counts(self, "seeds", "epochs", "batch_size")
        if self.pruning.rewind >= self.epochs:
            raise ValueError(
                f"rewind is {self.pruning.rewind} of {self.epochs} epochs: leave at "
                "least one to train from there."
            )
        if self.pruning.needing("warm-up") and self.pruning.warmup >= self.epochs:
            raise ValueError(
                f"warmup is {self.pruning.warmup} of {self.epochs} epochs: leave at "
                "least one to train after pruning."
            )
        readers = self.pruning.needing("layer inputs")
        if readers and self.model.convolution != "xla":
            raise ValueError(
                f"{', '.join(readers)} cannot read the inputs of kernels that are cut "
                f"into taps, as model.convolution={self.model.convolution!r} does: "
                "pass --model.convolution=xla."
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
    """The fraction of every group of filters that stays, plus one: the best."""
    examples_per_class: int = 20
    """Training images of each class in the batches that are scored."""
    temperature: float = 5.0
    """The loss divides the logits by this, to train and to score."""
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
        check_counts(self, "seeds", "epochs", "batch_size")
        check_fractions("fractions", self.fractions)
        if max(self.rounds) >= self.epochs:
            raise ValueError(
                f"rounds holds {max(self.rounds)}, one an epoch, but there are "
                f"{self.epochs} epochs: leave at least one to train in the end."
            )


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How one network is spread over devices and processes."""

    fsdp: int = 1
    """Devices that each parameter is split over, -1 for all; the rest hold copies."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """The type that the network computes in; parameters and scores stay float32."""
    microbatches: int = 1
    """Parts of a batch, one after the other, whose gradients are averaged."""
    distributed: bool = False
    """Many processes: they find each other by jax.distributed.initialize."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """What is kept of a run to resume from."""

    every: int = 500
    """Optimizer steps between checkpoints, written while training goes on."""
    keep: int = 3
    """How many are kept, the newest."""

    def __post_init__(self) -> None:
        check_counts(self, "every", "keep", prefix="checkpoints.")


@dataclasses.dataclass(frozen=True)
class Logging:
    """What is written while training."""

    every: int = 50
    """Optimizer steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write the same for TensorBoard; needs the extra "tensorboard"."""
    profile: int = 0
    """Optimizer steps to trace with JAX's profiler, once all is compiled."""

    def __post_init__(self) -> None:
        check_counts(self, "every", prefix="logging.")


@dataclasses.dataclass(frozen=True)
class Scaled:
    """One network with one method, on all devices of one process or of many."""

    data: Data = Data()
    model: Model = Model()
    method: Method = "snip"
    """All but those that train several networks, decide between epochs when to prune,
    or prune after training."""
    sparsity: float = 0.9
    """Fraction of the prunable weights removed."""
    pruning: Pruning = Pruning()
    """The options of the method; those of a comparison are not read."""
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
    """Where checkpoints and metrics go; None is runs/<name>. A run that is there is
    resumed."""

    def __post_init__(self) -> None:
        check_counts(self, "epochs", "batch_size")
        check_counts(self.parallel, "microbatches", prefix="parallel.")
        check_fractions("sparsity", (self.sparsity,))
        refusals = {
            "several trainings": "trains several networks to find one mask",
            "a trigger": "decides between epochs when to prune",
            "a trained network": "prunes networks that are trained",
            "layer inputs": "prunes networks that are trained",
        }
        why = refusals.get(METHODS[self.method].needs)
        if why is not None:
            raise ValueError(
                f"{self.method!r} {why}: run it as a comparison, such as digits."
            )
