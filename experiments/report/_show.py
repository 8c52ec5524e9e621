"""The files and the terminal output of a run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report import _figures, _flow_figures, _tables
from experiments.report._claims import gather


class Shown(NamedTuple):
    """Files, by name, and what a terminal shows."""

    files: dict[str, bytes]
    text: Sequence[Any]


def comparison(found: Mapping[str, Any]) -> Shown:
    """The report on a comparison."""
    files = {
        "results.json": _json(found),
        "accuracy.png": _figures.accuracy(found),
        "density.png": _figures.density(found),
    }
    text = [
        _tables.accuracies(found),
        _tables.accuracies(found, "test_accuracy_at_best"),
        _tables.variants(found) or "",
        _tables.notes(found),
    ]
    return Shown(files, text)


def rounds(found: Mapping[str, Any]) -> Shown:
    """The report on a pipeline, whose runs hold their epochs and prunings."""
    left_out = ("epochs", "prunes")  # They stay in the files of the runs.
    short = [
        {k: v for k, v in run.items() if k not in left_out} for run in found["results"]
    ]
    runs = gather(found["results"])
    files = {
        "results.json": _json({**found, "results": short}),
        "accuracy.png": _flow_figures.accuracy(found, runs),
        "claims.png": _flow_figures.claims(found, runs),
        "diagnostics.png": _flow_figures.diagnostics(found, runs),
    }
    text = [
        _tables.dense(found),
        *_tables.rounds(found),
        _tables.legend(found),
        *_tables.verdicts(found),
    ]
    return Shown(files, text)


def _json(found: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(found, indent=2, default=str)}\n".encode()
