"""A comparison of methods."""

import dataclasses
import pathlib
from typing import Literal

from experiments.config._checks import check_counts, check_fractions
from experiments.config._parts import Data, Model, Pruning


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
        check_counts(self)
        check_fractions("sparsities", self.pruning.sparsities)
        if self.pruning.rewind >= self.epochs:
            raise ValueError(
                f"rewind is {self.pruning.rewind} of {self.epochs} epochs: leave at "
                "least one to train from there."
            )
        reads_inputs = {"wanda", "wanda_n_m", "sparse_gpt", "sparse_gpt_n_m"}
        reads_inputs &= set(self.pruning.methods)
        if reads_inputs and self.model.convolution != "xla":
            raise ValueError(
                f"{', '.join(sorted(reads_inputs))} cannot read the inputs of kernels "
                f"that are cut into taps, as model.convolution="
                f"{self.model.convolution!r} does: pass --model.convolution=xla."
            )
        warms_up = {"drive", "trained_magnitude", "lamp", "blocks"}
        warms_up &= set(self.pruning.methods)
        if warms_up and self.pruning.warmup >= self.epochs:
            raise ValueError(
                f"warmup is {self.pruning.warmup} of {self.epochs} epochs: leave at "
                "least one to train once pruned."
            )
