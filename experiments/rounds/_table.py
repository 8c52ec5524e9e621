"""The runs as rows: gathered over seeds, as tables for a terminal, as claims."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from experiments.config import Rounds
from experiments.results import mean_and_std
from experiments.rounds._run import DENSE, Row

Runs = Mapping[Row, Sequence[Mapping[str, Any]]]
"""For every row its runs, one a seed, as `experiments.rounds.run` returns them."""


def gather(found: Sequence[Mapping[str, Any]]) -> dict[Row, list[Mapping[str, Any]]]:
    """Sorts runs into rows."""
    rows: dict[Row, list[Mapping[str, Any]]] = {}
    for run in found:
        rows.setdefault(Row(*(run[field] for field in Row._fields)), []).append(run)
    return rows


def values(runs: Runs, row: Row, field: str) -> list[float]:
    """One number of every seed's run."""
    return [run[field] for run in runs[row]]


def speed_up(runs: Runs, row: Row) -> float | None:
    """Latency of the masked network over that of the small one, where it was timed."""
    timed = [run["latency"] for run in runs[row] if run["latency"]]
    return timed[0]["masked"] / timed[0]["small"] if timed else None


def tables(config: Rounds, runs: Runs) -> tuple[str | Table, ...]:
    """Accuracies by measure, fraction and rounds; then what the filters' rows cost."""
    dense = mean_and_std(values(runs, DENSE, "test_accuracy"))
    parts: list[str | Table] = [
        f"Dense: {_percent(*dense)} % test accuracy, last epoch."
    ]
    for level in sorted(config.levels):
        for field, words in _FIELDS.items():
            parts += [
                f"[bold]Test accuracy (%) {words}, pruning {level}",
                _accuracies(config, runs, level, field),
            ]
    if "filters" in config.levels:
        parts += [
            "[bold]What is left of the network, pruning filters",
            _costs(config, runs),
        ]
    return (
        *parts,
        f"Mean ± standard deviation over {config.seeds} seeds. Single weights: as many "
        "parameters as the filters' row has left. Speed-up: a batch of 100 images, "
        "shrunk against masked, the first seed's.",
    )


_FIELDS = {
    "test_accuracy": "after the last epoch",
    "test_accuracy_at_best": "after the epoch best on validation",
}


def _accuracies(config: Rounds, runs: Runs, level: str, field: str) -> Table:
    def cell(row: Row) -> str:
        return _percent(*mean_and_std(values(runs, row, field))) if row in runs else "-"

    return _table(config, level, cell)


def _costs(config: Rounds, runs: Runs) -> Table:
    whole = {
        f: statistics.mean(values(runs, DENSE, f)) for f in ("parameters", "flops")
    }

    def cell(row: Row) -> str:
        shares = [statistics.mean(values(runs, row, f)) / n for f, n in whole.items()]
        faster = speed_up(runs, row)
        timed = "" if faster is None else f" {faster:.1f}x"
        return " ".join(f"{100 * share:.0f}%" for share in shares) + timed

    table = _table(config, "filters", cell)
    table.caption = "parameters and FLOPs of the dense network's, speed-up"
    return table


def _table(config: Rounds, level: str, cell: Callable[[Row], str]) -> Table:
    """A line a measure, a column a fraction and number of rounds."""
    columns = [(n, f) for n in config.rounds for f in config.fractions]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("measure", no_wrap=True)
    for rounds, fraction in columns:
        title = f"{100 * fraction:g} %, {rounds} rd"
        table.add_column(title, justify="right", no_wrap=True)
    for measure in config.measures:
        cells = [cell(Row(measure, level, f, n)) for n, f in columns]
        table.add_row(measure, *cells)
    return table


def _percent(mean: float, std: float) -> str:
    return f"{100 * mean:.1f} ±{100 * std:.1f}"
