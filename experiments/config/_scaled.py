"""One network on a mesh of devices."""

import dataclasses
import pathlib
from typing import Literal

from experiments.config._checks import check_counts, check_fractions
from experiments.config._names import POST_TRAINING, Method
from experiments.config._parts import Data, Model, Pruning


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
    """All but "imp" and "k_starts_independent", which train several networks, the
    triggers "earlycrop" and "epi", and what prunes after training."""
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
        check_counts(self)
        check_fractions("sparsity", (self.sparsity,))
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
        if self.method in ("earlycrop", "epi"):
            raise ValueError(
                f"{self.method!r} decides between epochs, outside the compiled "
                "programs, when to prune: run it as a comparison, such as digits_early."
            )
        if self.method in POST_TRAINING:
            raise ValueError(
                f"{self.method!r} prunes networks that are trained: run it as a "
                "comparison, such as digits_post_training."
            )
