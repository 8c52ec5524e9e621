"""The three claims of Lubana & Dick, each as a number that decides it.

Every number is a mean over the rows of a level (fractions and numbers of rounds) and
over seeds. Nothing here is a test of significance: the spread stands beside the mean.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from experiments.gradient_flow import Row
from experiments.report._tables import mean_and_std

Run: TypeAlias = Mapping[str, Any]
Runs: TypeAlias = Mapping[Row, Sequence[Run]]
Number: TypeAlias = Callable[[Row, Run], float]


def gather(results: Sequence[Run]) -> Runs:
    """Sorts runs into rows, one run a seed."""
    rows: dict[Row, list[Run]] = {}
    for run in results:
        rows.setdefault(Row(*(run[field] for field in Row._fields)), []).append(run)
    return rows


def claims(config: Mapping[str, Any], results: Sequence[Run]) -> list[dict[str, Any]]:
    """Decides every claim at every level whose measures were run.

    Returns:
      For each the claim's text, what its number is, the level, the numbers of each
      measure (mean, deviation), and whether it held: None if a number that decides it
      is not a number.
    """
    runs, found = gather(results), []
    for level in sorted(config["levels"]):
        for text, number, of, holds, needed in _CLAIMS:
            values = _values(config["measures"], runs, level, of)
            if needed <= values.keys():
                means = {measure: mean for measure, (mean, _) in values.items()}
                known = not any(map(math.isnan, means.values()))
                found.append(
                    {
                        "text": text,
                        "number": number,
                        "level": level,
                        "values": values,
                        "held": holds(means) if known else None,
                    }
                )
    return found


def training_loss(row: Row, run: Run) -> float:
    """The mean training loss over the epochs after the last pruning."""
    return statistics.mean(e["train_loss"] for e in run["epochs"][row.rounds :])


def contribution(row: Row, run: Run) -> float:
    """The contribution of the weights removed first, over an average weight's."""
    del row
    return run["prunes"][0]["contribution_share"]


def distance(row: Row, run: Run) -> float:
    """How far the outputs are from the dense ones, an epoch after the first cut."""
    del row
    return run["epochs"][1]["distance_to_dense"]


def gradient_ratio(row: Row, run: Run) -> float:
    """The squared gradient norm after the first pruning over the norm before.

    Of all weights: at the level of weights, removed ones still have a gradient.
    """
    del row
    before, after = run["prunes"][0]["squared_gradient"]
    return after / before


def accuracy(row: Row, run: Run) -> float:
    """The test accuracy after the last epoch."""
    del row
    return run["test_accuracy"]


def _values(
    measures: Sequence[str], runs: Runs, level: str, of: Number
) -> dict[str, tuple[float, float]]:
    """For each measure the mean over rows and seeds, and the deviation over seeds."""
    values = {}
    for measure in measures:
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
