"""The three claims of Lubana & Dick, each decided by one number.

A number is a mean over the rows of a level (fractions and numbers of rounds) and over
seeds. None of this is a test of significance: the spread is given next to the mean.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from experiments.gradient_flow import Row
from experiments.report._tables import mean_and_std

Run: TypeAlias = Mapping[str, Any]
Runs: TypeAlias = Mapping[Row, Sequence[Run]]


def gather(results: Sequence[Run]) -> Runs:
    """The runs of each row, one a seed."""
    rows: dict[Row, list[Run]] = {}
    for run in results:
        rows.setdefault(Row(*(run[field] for field in Row._fields)), []).append(run)
    return rows


def conclusions(found: Mapping[str, Any]) -> dict[str, Any]:
    """The claims, decided by the runs of a result."""
    return {"claims": claims(found["config"], found["results"])}


def claims(config: Mapping[str, Any], results: Sequence[Run]) -> list[dict[str, Any]]:
    """Decides every claim at every level whose measures were run.

    "values" are the mean and the deviation of each measure; "held" is None if one of
    them is not a number.
    """
    runs, found = gather(results), []
    for level in sorted(config["levels"]):
        for claim in CLAIMS:
            values = _values(config["measures"], runs, level, claim.of)
            if claim.needs <= values.keys():
                means = {measure: mean for measure, (mean, _) in values.items()}
                known = not any(map(math.isnan, means.values()))
                found.append(
                    {
                        "text": claim.text,
                        "number": claim.number,
                        "level": level,
                        "values": values,
                        "held": claim.holds(means) if known else None,
                    }
                )
    return found


def _values(
    measures: Sequence[str], runs: Runs, level: str, of: Callable[[Run], float]
) -> dict[str, tuple[float, float]]:
    """For each measure the mean over rows and seeds, and the deviation over seeds."""
    values = {}
    for measure in measures:
        rows = [r for r in runs if (r.measure, r.level) == (measure, level)]
        if rows:
            seeds = zip(*([of(run) for run in runs[row]] for row in rows), strict=True)
            values[measure] = mean_and_std([statistics.mean(seed) for seed in seeds])
    return values


def training_loss(run: Run) -> float:
    """The mean training loss over the epochs after the last pruning."""
    return statistics.mean(e["train_loss"] for e in run["epochs"][run["rounds"] :])


def contribution(run: Run) -> float:
    """The contribution of the weights removed first, over an average weight's."""
    return run["prunes"][0]["contribution_share"]


def distance(run: Run) -> float:
    """The distance of the outputs from the dense ones, an epoch after the first cut."""
    return run["epochs"][1]["distance_to_dense"]


def gradient_ratio(run: Run) -> float:
    """The squared gradient norm after the first pruning over the norm before.

    It includes the gradients of single weights that are removed.
    """
    before, after = run["prunes"][0]["squared_gradient"]
    return after / before


def accuracy(run: Run) -> float:
    """The test accuracy after the last epoch."""
    return run["test_accuracy"]


class Claim(NamedTuple):
    """A claim, the number that decides it, and the measures that it compares."""

    text: str
    number: str
    of: Callable[[Run], float]
    holds: Callable[[Mapping[str, float]], bool]
    needs: set[str]


CLAIMS = (
    Claim(
        "(i) Magnitude-pruned models converge faster",
        "mean training loss after the last pruning",
        training_loss,
        lambda values: values["magnitude"] <= min(values.values()),
        {"magnitude", "loss_preservation"},
    ),
    Claim(
        "(i) The weights that magnitude removes have contributed less than average to "
        "the fall of the loss",
        "contribution of a removed weight over that of an average one",
        contribution,
        lambda values: values["magnitude"] < 1,
        {"magnitude"},
    ),
    Claim(
        "(ii) Loss preservation keeps the dense network's dynamics best when little "
        "trained",
        "distance of the outputs from the dense ones, an epoch after the first cut",
        distance,
        lambda values: values["loss_preservation"] <= min(values.values()),
        {"loss_preservation", "magnitude"},
    ),
    Claim(
        "(iii) GraSP raises the gradient norm",
        "squared gradient norm, of removed weights too, after over before the first "
        "pruning",
        gradient_ratio,
        lambda values: values["grasp"] > 1,
        {"grasp"},
    ),
    Claim(
        "(iii) Raising the gradient norm makes poorer models than preserving it",
        "test accuracy after the last epoch",
        accuracy,
        lambda values: values["grasp"] < values["gradient_preservation"],
        {"grasp", "gradient_preservation"},
    ),
)
