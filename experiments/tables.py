"""The results as tables for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from experiments.results import Report, Result, mean_and_std


def accuracies(report: Report) -> tuple[str | Table, ...]:
    """Test accuracy after the last epoch, and after the one best on validation."""
    name, seeds = report.name, report.config.seeds
    parts: list[str | Table] = [
        f"[bold]{name}: test accuracy (%) after the last epoch, by weights removed",
        _table(report, "test_accuracy"),
        f"[bold]{name}: the same after the epoch best on validation",
        _table(report, "test_accuracy_at_best"),
    ]
    if any(result.variant for result in report.results):
        at = report.config.pruning.check_sparsity
        parts += [
            f"[bold]{name}: sanity checks and ablations, {100 * at:g} % removed",
            _variants(report, at),
        ]
    return (
        *parts,
        f"Mean ± standard deviation over {seeds} seeds. Scored {report.scored}; the "
        "times are one network's, compiled: score and mask, and all that comes before "
        "the last training.",
    )


def _table(report: Report, field: str) -> Table:
    config = report.config
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    sparsities = config.pruning.all_sparsities()
    table.add_column("method", no_wrap=True)
    table.add_column("scored in", justify="right", no_wrap=True)
    found = [result for result in report.results if not result.variant]
    trains_first = any(r.pruning_seconds > (r.score_seconds or 0.0) for r in found)
    if trains_first:  # Else pruning is scoring.
        table.add_column("pruned in", justify="right", no_wrap=True)
    for sparsity in sparsities:
        table.add_column(f"{100 * sparsity:g} %", justify="right", no_wrap=True)

    means = {(r.method, r.sparsity): mean_and_std(getattr(r, field)) for r in found}
    best = {
        s: max(mean for (_, sparsity), (mean, _) in means.items() if sparsity == s)
        for s in sparsities
    }
    dense = _percent(*means["dense", 0.0])
    blank = [""] * (1 + trains_first)
    table.add_row("dense", *blank, *[dense] * len(sparsities), end_section=True)
    for method in config.pruning.methods:
        cells = []
        for sparsity in sparsities:
            if (method, sparsity) not in means:
                cells.append("-")
                continue
            mean, std = means[method, sparsity]
            cell = _percent(mean, std)
            cells.append(f"[bold]{cell}[/bold]" if mean == best[sparsity] else cell)
        own = [r for r in found if r.method == method]
        times = [_score_time(own), _pruning_time(found, own)][: 1 + trains_first]
        table.add_row(method, *times, *cells)
    return table


def _variants(report: Report, sparsity: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("method", "variant", "removed", "last epoch", "best on validation"):
        table.add_column(column, no_wrap=True)
    varied = {result.method for result in report.results if result.variant}
    for result in sorted(report.results, key=lambda r: r.method):
        if result.method in varied and result.sparsity == sparsity:
            last = _percent(*mean_and_std(result.test_accuracy))
            best = _percent(*mean_and_std(result.test_accuracy_at_best))
            removed = _removed(result)
            table.add_row(
                result.method, result.variant or "itself", removed, last, best
            )
    return table


def _removed(result: Result) -> str:
    return f"{100 * mean_and_std(result.sparsity_reached)[0]:.1f} %"


def _percent(mean: float, std: float) -> str:
    return f"{100 * mean:.1f} ±{100 * std:.1f}"


def _score_time(found: Sequence[Result]) -> str:
    """The longest over the sparsities, in ms."""
    known = [r.score_seconds for r in found if r.score_seconds is not None]
    return f"{1000 * max(known):.1f} ms" if known else "-"


def _pruning_time(every: Sequence[Result], found: Sequence[Result]) -> str:
    """The longest, in s, and how many times faster than iterative pruning's."""
    seconds = max(r.pruning_seconds for r in found)
    iterative = [r.pruning_seconds for r in every if r.method == "imp"]
    if not seconds:
        return "-"
    ratio = f" ({max(iterative) / seconds:.0f}x)" if iterative else ""
    return f"{seconds:.3g} s{ratio}"
