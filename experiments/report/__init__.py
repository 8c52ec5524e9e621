"""Tables, figures and the page of results, all made from ``results.json``.

``python -m experiments.report`` writes experiments/README.md from the results in
experiments/results, and the measured cells of the table of methods in docs/methods.md.
To publish a result, copy the files of a run, ``results.json`` and its figures, into a
folder there with the name of the experiment.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report import _figures, _flow_figures, _tables
from experiments.report._claims import claims as claims
from experiments.report._claims import gather
from experiments.report._page import filled as filled
from experiments.report._page import measured as measured
from experiments.report._page import page as page
from experiments.report._tables import mean_and_std as mean_and_std
from experiments.report._tables import percent as percent

HERE = pathlib.Path(__file__).parent.parent


class Shown(NamedTuple):
    """The output of a run."""

    files: dict[str, bytes]  # By name.
    text: Sequence[Any]  # For a terminal.


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
    """The report on pruning in rounds."""
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
