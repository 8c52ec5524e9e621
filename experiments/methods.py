"""The measured cells of the README's table of methods.

A row is written by hand up to its last three cells: test accuracy with 90 % of the
weights removed on digits, with 98 % removed on MNIST, and what one network's pruning
took before its last training, on both. ``python -m experiments.readme`` writes those.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from experiments.results import mean_and_std, percent

_Result: TypeAlias = Mapping[str, Any]


class Column(NamedTuple):
    """A column of accuracies.

    Attributes:
      experiment: whose network and training it is of; others of the same count too,
        and where there are none, those of another network on the same data, by name.
      sparsity: fraction of the prunable weights removed; where a method was run at less
        alone, its highest.
    """

    experiment: str
    sparsity: float


COLUMNS = (Column("digits", 0.9), Column("drive_mnist", 0.98))
METHODS = {  # What the experiments call a row that is not of their name.
    "erk": "static",
    "set_training": "set",
    "forward_sparse": "ste",
    "iterative_mask": "iterative_snip",
    "force_mask": "force",
    "exact_orthogonal_init": "eoi",
    "earlycrop_trigger": "earlycrop",
    "epi_trigger": "epi",
    "block_mask": "blocks",
    "n_m_mask": "sr_ste",
    "rewinding": "imp",
    "phases": "ac_dc",
}
_NEAR = 0.005  # A share that is not named, as it is that of the column.
_GAP = "\u00a0"  # Lines do not break there.
_ROW = re.compile(r"^\| \[`?(\w+)`?\].*\|$", re.M)
_CELL = re.compile(r"(?<!\\)\|")  # A bar that is not escaped.


def filled(text: str, folder: pathlib.Path) -> str:
    """The README's text with the measured cells of all its methods' rows.

    Args:
      text: with a table whose rows begin with a name in brackets, "| [`snip`](...)".
      folder: that of the results.
    """
    cells = measured(folder)

    def row(match: re.Match[str]) -> str:
        by_hand = _CELL.split(match[0])[1 : -2 - len(COLUMNS)]
        return f"|{'|'.join(by_hand)}| {' | '.join(cells(match[1]))} |"

    return _ROW.sub(row, text)


def measured(folder: pathlib.Path) -> Callable[[str], list[str]]:
    """Reads all results; gives ``cells(name)``, the last three cells of a row."""
    found = [(_results(folder, c.experiment), c.sparsity) for c in COLUMNS]

    def cells(name: str) -> list[str]:
        method = METHODS.get(name, name)
        own = [
            _chosen([r for r in results if r["method"] == method], sparsity)
            for results, sparsity in found
        ]
        sparsities = [sparsity for _, sparsity in found]
        return [*map(_accuracy, own, sparsities), _cost(own)]

    return cells


def _results(folder: pathlib.Path, experiment: str) -> list[_Result]:
    """What one experiment found, and then all others on its data."""
    paths = sorted(folder.glob("*/results.json"))
    read = [r for r in map(_read, paths) if "pruning" in r["config"]]
    (first,) = [r for r in read if r["name"] == experiment]
    read.sort(key=lambda r: r is not first)  # Else by name.
    return [
        {**row, "elsewhere": _elsewhere(found["config"], first["config"])}
        for found in read
        if found["config"]["data"]["name"] == first["config"]["data"]["name"]
        for row in found["results"]
        if not row["variant"]
    ]


def _elsewhere(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The network's name, if it or its training is another; else nothing."""
    alike = all(config[key] == wanted[key] for key in _ALIKE)
    return "" if alike else config["model"]["name"]


def _chosen(rows: Sequence[_Result], sparsity: float) -> _Result | None:
    """The first at a sparsity, or at the highest below it; None if there is none."""
    below = [row for row in rows if row["sparsity"] <= sparsity]
    alike = [row for row in below if not row["elsewhere"]]
    return max(alike or below, key=lambda row: row["sparsity"], default=None)


def _accuracy(row: _Result | None, sparsity: float) -> str:
    if row is None:
        return "—"
    removed, _ = mean_and_std(row["sparsity_reached"])
    at = "" if abs(removed - sparsity) < _NEAR else f" at {100 * removed:.0f}{_GAP}%"
    where = f" ({row['elsewhere']})" if row["elsewhere"] else ""
    return percent(row["test_accuracy"]).replace(" ", _GAP) + at + where


def _cost(rows: Sequence[_Result | None]) -> str:
    times = [row["pruning_seconds"] if row else 0.0 for row in rows]
    return " / ".join(map(_time, times)) if any(times) else "—"


def _time(seconds: float) -> str:
    if not seconds:
        return "—"
    if seconds < 0.1:
        return f"{1000 * seconds:.2g}{_GAP}ms"
    return f"{seconds:.2g}{_GAP}s"


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text())


_ALIKE = ("model", "epochs", "seeds", "batch_size", "learning_rate")
