"""The page of results, and the measured cells of the table of methods."""

import json
import pathlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from experiments import configs
from experiments.methods import METHODS
from experiments.report import _tables
from experiments.report._kinds import parts
from experiments.report._tables import Found, Row, mean_and_std, percent

_HEAD = """\
# Experiments

Written by `python -m experiments.report` from the files in `results/`, not by hand.
Test accuracy in %, mean ± standard deviation over seeds, after the last epoch; nothing
was tuned on the test images. A run that is stopped resumes where it was.
"""


def page(folder: pathlib.Path) -> str:
    """The page on all results in a folder."""
    paths = sorted(folder.glob("*/results.json"))
    sections = [_section(path.parent, _read(path)) for path in paths]
    done = {path.parent.name for path in paths}
    names = [module.name for module in pkgutil.iter_modules(configs.__path__)]
    missing = [f"`{name}`" for name in names if name not in done]
    not_run = f"Not run, or not in full: {', '.join(missing)}.\n"
    return "\n".join([_HEAD, *sections, *([not_run] if missing else [])])


def _section(folder: pathlib.Path, found: Found) -> str:
    name, config, place = found["name"], found["config"], found["environment"]
    module = import_module(f"experiments.configs.{name}")
    versions = ", ".join(f"{k} {v}" for k, v in place["packages"].items())
    figures = [
        f"![{path.stem}](results/{folder.name}/{path.name})"
        for path in sorted(folder.glob("*.png"))
    ]
    about = (module.__doc__ or "").partition("\n\nRun:")[0]
    if "images" in found:
        places = (
            "" if config["data"]["name"] == "digits" else " --data.dir=<TFDS folder>"
        )
        images = ", ".join(f"{n:,} {split}" for split, n in found["images"].items())
        run, wanted = config["seeds"], module.config.seeds
        seeds = run if run >= wanted else f"{run} of {wanted} (the rest was not run)"
        sizes = f"Seeds: {seeds}; epochs: {config['epochs']}; images: {images}. "
        scored = f" Scored {found['scored']}."
    else:
        places, sizes, scored = " --model.path=<file>", "", ""
    lines = [
        f"## {name}\n",
        f"{about}\n",
        f"    python -m experiments.run {' '.join(place['command'])}{places}\n",
        f"{sizes}{found['seconds'] / 60:.0f} minutes on {place['cpu_count']} cores "
        f"({place['device']}); Python {place['python']}, {versions}; commit "
        f"{(place['commit'] or 'unknown')[:12]}.{scored}\n",
        *(p if isinstance(p, str) else p.markdown() for p in parts(found)),
        *figures,
    ]
    return "\n".join(lines) + "\n"


# The table of methods in the documentation: the last three cells of a row are measured.


class Column(NamedTuple):
    """A column of accuracies.

    Results come from the experiment, or from another one with the same network and
    training. If there is none, another network on the same data counts, and the cell
    names it.
    """

    experiment: str
    sparsity: float  # Of a method that only ran at less, the highest.


COLUMNS = (Column("digits", 0.9), Column("drive_mnist", 0.98))

_NEAR = 0.005  # A sparsity this close to the column's is not named.
_GAP = "\u00a0"  # Lines do not break there.
_ROW = re.compile(r"^\| \[`?(\w+)`?\].*\|$", re.M)
_CELL = re.compile(r"(?<!\\)\|")  # A bar that is not escaped.
_ALIKE = ("model", "epochs", "seeds", "batch_size", "learning_rate")


def filled(text: str, folder: pathlib.Path) -> str:
    """The text of a page with the measured cells of its table of methods.

    The rows of the table begin with a name in brackets: "| [`snip`](...)".
    """
    cells = measured(folder)

    def row(match: re.Match[str]) -> str:
        by_hand = _CELL.split(match[0])[1 : -2 - len(COLUMNS)]
        return f"|{'|'.join(by_hand)}| {' | '.join(cells(match[1]))} |"

    return _ROW.sub(row, text)


def measured(folder: pathlib.Path) -> Callable[[str], list[str]]:
    """Reads all results; returns ``cells(name)``, the last three cells of a row."""
    found = [(_results(folder, c.experiment), c.sparsity) for c in COLUMNS]
    names = {row.row: name for name, row in METHODS.items() if row.row}

    def cells(name: str) -> list[str]:
        method = names.get(name, name)
        own = [
            _chosen([r for r in results if r["method"] == method], sparsity)
            for results, sparsity in found
        ]
        sparsities = [sparsity for _, sparsity in found]
        times = [_time(row["pruning_seconds"] if row else 0.0) for row in own]
        seconds = " / ".join(times) if {*times} != {"—"} else "—"
        return [*map(_accuracy, own, sparsities), seconds]

    return cells


def _results(folder: pathlib.Path, experiment: str) -> list[Row]:
    """The rows of an experiment, followed by all other rows on its data."""
    paths = sorted(folder.glob("*/results.json"))
    read = [r for r in map(_read, paths) if "pruning" in r["config"]]
    (first,) = [r for r in read if r["name"] == experiment]
    read.sort(key=lambda r: r is not first)  # The rest by name.
    return [
        {**row, "elsewhere": _elsewhere(found["config"], first["config"])}
        for found in read
        if found["config"]["data"]["name"] == first["config"]["data"]["name"]
        for row in _tables.plain_rows(found).values()
    ]


def _elsewhere(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The network's name if it or its training differs, or else ""."""
    alike = all(config[key] == wanted[key] for key in _ALIKE)
    return "" if alike else config["model"]["name"]


def _chosen(rows: Sequence[Row], sparsity: float) -> Row | None:
    """The first at a sparsity, or at the highest below it; None if there is none."""
    below = [row for row in rows if row["sparsity"] <= sparsity]
    alike = [row for row in below if not row["elsewhere"]]
    return max(alike or below, key=lambda row: row["sparsity"], default=None)


def _accuracy(row: Row | None, sparsity: float) -> str:
    if row is None:
        return "—"
    removed, _ = mean_and_std(row["sparsity_reached"])
    at = "" if abs(removed - sparsity) < _NEAR else f" at {100 * removed:.0f}{_GAP}%"
    where = f" ({row['elsewhere']})" if row["elsewhere"] else ""
    return percent(row["test_accuracy"]).replace(" ", _GAP) + at + where


def _time(seconds: float) -> str:
    if not seconds:
        return "—"
    if seconds < 0.1:
        return f"{1000 * seconds:.2g}{_GAP}ms"
    return f"{seconds:.2g}{_GAP}s"


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text())
