"""The kinds of results: how each is shown. A new program adds a row to `KINDS`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report import _claims, _figures, _flow_figures, _language, _tables


class Kind(NamedTuple):
    """A kind of results; its functions are called with the content of a file."""

    parts: Callable[..., Sequence[Any]]  # Tables and texts.
    figures: Callable[..., dict[str, bytes]]  # By name.
    conclusions: Callable[..., dict[str, Any]] = lambda found: {}  # For the file.


KINDS = {  # By an option that only configs of this kind have.
    "pruning": Kind(_tables.comparison, _figures.comparison),
    "measures": Kind(_tables.rounds, _flow_figures.rounds, _claims.conclusions),
    "recovery": Kind(_language.parts, _language.figures),
}


def _kind(found: Mapping[str, Any]) -> Kind:
    return next(kind for option, kind in KINDS.items() if option in found["config"])


def parts(found: Mapping[str, Any]) -> Sequence[Any]:
    """Tables and texts on a result, for a terminal or for Markdown."""
    return _kind(found).parts(found)


def conclusions(found: Mapping[str, Any]) -> dict[str, Any]:
    """Conclusions from whole runs, before their epochs are left out."""
    return _kind(found).conclusions(found)


def files(found: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a result, by name."""
    left_out = ("epochs", "prunes")  # They stay in the files of the runs.
    results = [
        {k: v for k, v in run.items() if k not in left_out} for run in found["results"]
    ]
    text = json.dumps({**found, "results": results}, indent=2, default=str)
    return {"results.json": f"{text}\n".encode(), **_kind(found).figures(found)}
