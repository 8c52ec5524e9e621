"""The three claims of Lubana & Dick, each as a number that decides it.

Every number is a mean over the rows of a level (fractions and numbers of rounds) and
over seeds. Nothing here is a test of significance: the spread stands beside the mean.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.config import Rounds
from experiments.results import mean_and_std
from experiments.rounds._run import Row
from experiments.rounds._table import Runs

Number = Callable[[Row, Mapping[str, Any]], float]


class Claim(NamedTuple):
    """A claim, the numbers of each measure (mean, deviation), and whether it held.

    None is neither: a number that decides it is not a number.
    """

    text: str
    number: str
    level: str
    values: dict[str, tuple[float, float]]
    held: bool | None


VERDICTS = {True: "held", False: "did not hold", None: "is undecided"}


def claims(config: Rounds, runs: Runs) -> list[Claim]:
    """Decides every claim at every level whose measures were run."""
    found = []
    for level in sorted(config.levels):
        for text, number, of, decide, needed in _CLAIMS:
            values = _values(config, runs, level, of)
            if needed <= values.keys():
                means = {measure: mean for measure, (mean, _) in values.items()}
                known = not any(map(math.isnan, means.values()))
                held = decide(means) if known else None
                found.append(Claim(text, number, level, values, held))
    return found


def sentence(claim: Claim) -> str:
    """The claim, the verdict and the numbers."""
    numbers = ", ".join(
        f"{measure} {mean:.3g} ±{std:.2g}"
        for measure, (mean, std) in sorted(claim.values.items(), key=lambda x: x[1])
    )
    verdict = VERDICTS[claim.held]
    return f"{claim.text} ({claim.level}): {verdict}. {claim.number}: {numbers}."


def training_loss(row: Row, run: Mapping[str, Any]) -> float:
    """The mean training loss over the epochs after the last pruning."""
    return statistics.mean(e["train_loss"] for e in run["epochs"][row.rounds :])


def contribution(row: Row, run: Mapping[str, Any]) -> float:
    """What the weights removed first had contributed, over an average weight's."""
    del row
    return run["prunes"][0]["contribution_share"]


def distance(row: Row, run: Mapping[str, Any]) -> float:
    """How far the outputs are from the dense ones, an epoch after the first cut."""
    del row
    return run["epochs"][1]["distance_to_dense"]


def gradient_ratio(row: Row, run: Mapping[str, Any]) -> float:
    """The squared gradient norm after the first pruning over that before.

    Of all weights: at the level of weights those that were removed still have one.
    """
    del row
    before, after = run["prunes"][0]["squared_gradient"]
    return after / before


def accuracy(row: Row, run: Mapping[str, Any]) -> float:
    """The test accuracy after the last epoch."""
    del row
    return run["test_accuracy"]


def _values(
    config: Rounds, runs: Runs, level: str, of: Number
) -> dict[str, tuple[float, float]]:
    """For each measure the mean over rows and seeds, and the deviation over seeds."""
    values = {}
    for measure in config.measures:
        rows = [r for r in runs if (r.measure, r.level) == (measure, level)]
        if rows:
            seeds = zip(
                *([of(row, run) for run in runs[row]] for row in rows), strict=True
            )
            values[measure] = mean_and_std([statistics.mean(seed) for seed in seeds])
    return values


def _least(name: str) -> Callable[[Mapping[str, float]], bool]:
    return lambda values: values[name] <= min(values.values())


_CLAIMS = (
    (
        "(i) Magnitude-pruned models converge faster",
        "mean training loss after the last pruning",
        training_loss,
        _least("magnitude"),
        {"magnitude", "loss_preservation"},
    ),
    (
        "(i) The weights that magnitude removes have contributed less than average to "
        "the fall of the loss",
        "contribution of a removed weight over that of an average one",
        contribution,
        lambda values: values["magnitude"] < 1,
        {"magnitude"},
    ),
    (
        "(ii) Loss preservation keeps the dense network's dynamics best when little "
        "trained",
        "distance of the outputs from the dense ones, an epoch after the first cut",
        distance,
        _least("loss_preservation"),
        {"loss_preservation", "magnitude"},
    ),
    (
        "(iii) GraSP raises the gradient norm",
        "squared gradient norm, of removed weights too, after over before the first "
        "pruning",
        gradient_ratio,
        lambda values: values["grasp"] > 1,
        {"grasp"},
    ),
    (
        "(iii) Raising the gradient norm makes poorer models than preserving it",
        "test accuracy after the last epoch",
        accuracy,
        lambda values: values["grasp"] < values["gradient_preservation"],
        {"grasp", "gradient_preservation"},
    ),
)
