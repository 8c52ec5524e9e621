"""The results as tables for a terminal."""

from rich import box
from rich.table import Table

from experiments.results import Report, Result, mean_and_std


def accuracies(report: Report) -> tuple[str | Table, ...]:
    """Test accuracy after the last epoch, and after the one best on validation."""
    name, seeds = report.name, report.config.seeds
    return (
        f"[bold]{name}: test accuracy (%) after the last epoch, by weights removed",
        _table(report, "test_accuracy"),
        f"[bold]{name}: the same after the epoch best on validation",
        _table(report, "test_accuracy_at_best"),
        f"Mean ± standard deviation over {seeds} seeds. Scored {report.scored}; the "
        "time is one network's, score and mask, once compiled.",
    )


def _table(report: Report, field: str) -> Table:
    config = report.config
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    sparsities = config.pruning.sparsities
    table.add_column("method", no_wrap=True)
    table.add_column("scored in", justify="right", no_wrap=True)
    for sparsity in sparsities:
        table.add_column(f"{100 * sparsity:g} %", justify="right", no_wrap=True)

    means = {
        (result.method, result.sparsity): mean_and_std(getattr(result, field))
        for result in report.results
    }
    best = {
        s: max(mean for (_, sparsity), (mean, _) in means.items() if sparsity == s)
        for s in sparsities
    }
    dense = _percent(*means["dense", 0.0])
    table.add_row("dense", "", *[dense] * len(sparsities), end_section=True)
    for method in config.pruning.methods:
        cells = []
        for sparsity in sparsities:
            mean, std = means[method, sparsity]
            cell = _percent(mean, std)
            cells.append(f"[bold]{cell}[/bold]" if mean == best[sparsity] else cell)
        table.add_row(method, _score_time(report.results, method), *cells)
    return table


def _percent(mean: float, std: float) -> str:
    return f"{100 * mean:.1f} ±{100 * std:.1f}"


def _score_time(found: tuple[Result, ...], method: str) -> str:
    """The longest over the sparsities, in ms."""
    seconds = [r.score_seconds for r in found if r.method == method]
    known = [s for s in seconds if s is not None]
    return f"{1000 * max(known):.1f} ms" if known else "-"
