"""Everything that is written and printed of an experiment's runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from experiments import results
from experiments.config import Rounds
from experiments.data import Dataset
from experiments.rounds import _claims, _figures
from experiments.rounds._table import gather, tables


class Written(NamedTuple):
    """Files, by name, and what a terminal shows."""

    files: dict[str, bytes]
    text: tuple[str | Table, ...]


def report(
    name: str,
    config: Rounds,
    dataset: Dataset,
    found: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> Written:
    """Makes tables, figures and claims of what `experiments.rounds.run` gave."""
    runs = gather(found)
    decided = _claims.claims(config, runs)
    summary = {
        "name": name,
        "config": results.plain_config(config),
        "environment": environment,
        "images": dataset.sizes,
        "scored": "with BatchNorm in eval mode",
        "seconds": sum(run["seconds"] for run in found),
        "claims": [claim._asdict() for claim in decided],
        "results": [
            {k: v for k, v in run.items() if k not in ("epochs", "prunes")}
            for run in found
        ],
    }
    files = {
        "results.json": f"{json.dumps(summary, indent=1, default=str)}\n".encode(),
        "accuracy.png": _figures.accuracy(name, config, runs),
        "claims.png": _figures.claims(name, config, runs),
        "diagnostics.png": _figures.diagnostics(name, config, runs),
    }
    return Written(files, (*tables(config, runs), *map(_claims.sentence, decided)))
