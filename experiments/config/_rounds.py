"""Pruning in rounds while training."""

import dataclasses
import pathlib

from experiments.config._checks import check_counts, check_fractions
from experiments.config._names import Level, Measure
from experiments.config._parts import Data, Model


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
        check_counts(self)
        check_fractions("fractions", self.fractions)
        if max(self.rounds) >= self.epochs:
            raise ValueError(
                f"rounds holds {max(self.rounds)}, one an epoch, but there are "
                f"{self.epochs} epochs: leave at least one to train in the end."
            )
