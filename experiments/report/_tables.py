"""Tables of results, for a terminal and for Markdown.

They are made from the content of ``results.json``.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import rich.box
import rich.markup
import rich.table

from experiments.methods import AFTER_TRAINING

Found: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with titles above its columns."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def markdown(self) -> str:
        rule = ["---"] * len(self.titles)
        lines = [f"| {' | '.join(row)} |" for row in (self.titles, rule, *self.rows)]
        return "\n".join(lines) + "\n"

    def __rich_console__(self, *_: Any) -> Iterator[Any]:
        if self.caption:
            yield f"[bold]{self.caption}[/bold]"
        table = rich.table.Table(
            box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        first, *titles = self.titles
        table.add_column(first, no_wrap=True)
        for title in titles:  # Titles and cells wrap rather than being cut off.
            table.add_column(title, overflow="fold", justify="right")
        for row in self.rows:
            table.add_row(*map(rich.markup.escape, row))
        yield table


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the sample deviation: 0 for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=min(1, len(values) - 1)))


def percent(values: Sequence[float]) -> str:
    """The mean of fractions in %, with the deviation of more than one."""
    mean, std = mean_and_std(values)
    spread = f" ±{100 * std:.1f}" if len(values) > 1 else ""
    return f"{100 * mean:.1f}{spread}"


# Of a comparison.


def comparison(found: Found) -> list[Table | str]:
    """The tables and texts on a comparison."""
    varied = variants(found)
    parts = [accuracies(found), notes(found), fitness(found), varied or ""]
    return [part for part in parts if part]


def plain_rows(found: Found) -> dict[tuple[str, float], Row]:
    """The rows without checks and ablations, by method and sparsity."""
    rows = (r for r in found["results"] if not r.get("variant"))
    return {(r["method"], r["sparsity"]): r for r in rows}


def accuracies(found: Found) -> Table:
    """A line for each method, a column for each sparsity."""
    plain = plain_rows(found)
    sparsities = sorted({s for _, s in plain if s})
    iterative = [r["pruning_seconds"] for (m, _), r in plain.items() if m == "imp"]
    lines = []
    for method in dict.fromkeys(method for method, _ in plain):
        own = [r for (m, _), r in plain.items() if m == method]
        seconds = max(r.get("pruning_seconds") or 0.0 for r in own)
        pruned = f"{seconds:.3g} s" if seconds else "-"
        if seconds and iterative:
            pruned += f" ({max(iterative) / seconds:.0f}x)"
        at_all = own[0] if method == "dense" else None
        cells = [plain.get((method, s), at_all) for s in sparsities]
        shown = [percent(row["test_accuracy"]) if row else "-" for row in cells]
        lines.append([method, pruned, *shown])
    titles = [f"{100 * s:g} % removed" for s in sparsities]
    caption = "Test accuracy (%) after the last epoch"
    return Table(["method", "pruned in", *titles], lines, caption)


def variants(found: Found) -> Table | None:
    """The checks and ablations, each below its method; None if there are none."""
    varied = [r for r in found["results"] if r.get("variant")]
    if not varied:
        return None
    at = varied[0]["sparsity"]
    lines = [
        [
            row["method"],
            row.get("variant") or "itself",
            f"{100 * mean_and_std(row['sparsity_reached'])[0]:.1f} %",
            percent(row["test_accuracy"]),
        ]
        for method in dict.fromkeys(row["method"] for row in varied)
        for row in found["results"]
        if (row["method"], row["sparsity"]) == (method, at)
    ]
    titles = ["method", "check or ablation", "removed", "accuracy"]
    return Table(titles, lines, "Checks and ablations: test accuracy (%)")


def notes(found: Found) -> str:
    """Explains the columns of `accuracies`."""
    methods = {method: None for method, _ in plain_rows(found)}
    times = ", and how many times faster than iterative pruning"
    text = (
        "*Pruned in*: all the time that one network takes before its last training, "
        f"the longest over the sparsities{times if 'imp' in methods else ''}.\n"
    )
    late = [f"`{m}`" for m in methods if m in AFTER_TRAINING]
    if late:
        text += (
            f"{', '.join(late)}: trained networks, pruned and evaluated without more "
            "training; *pruned in* is the time of the pruning alone.\n"
        )
    return text


def fitness(found: Found) -> str:
    """How much the masks that K-starts chooses from differ in fitness."""
    lines = []
    for row in plain_rows(found).values():
        if row.get("fitness"):
            every = np.array(row["fitness"])
            lines.append(
                f"- Fitness of the {every.shape[1]} masks of {row['method']} at "
                f"{100 * row['sparsity']:g} %: {every.mean():.3f}, standard deviation "
                f"{every.std(axis=1).mean():.2g}, best {every.max(axis=1).mean():.3f}, "
                f"worst {every.min(axis=1).mean():.3f}.\n"
            )
    return "".join(lines)


# Of pruning in rounds.


def rounds(found: Found) -> list[Table | str]:
    """The tables and texts on pruning in rounds."""
    text = "\n".join(verdicts(found)) + "\n"
    parts = [dense(found), *levels(found), legend(found), text]
    return [part for part in parts if part]


def dense(found: Found) -> str:
    """The dense network's accuracy."""
    rows = [r for r in found["results"] if r["measure"] == "dense"]
    return f"Dense: {percent([r['test_accuracy'] for r in rows])}.\n"


def levels(found: Found) -> list[Table]:
    """A table for each level: a line for each measure."""
    config = found["config"]
    columns = list(itertools.product(config["rounds"], config["fractions"]))
    titles = [f"{100 * f:g} %, {n} round{'s' * (n > 1)}" for n, f in columns]
    tables = []
    for level in sorted(config["levels"]):
        own = [r for r in found["results"] if r["level"] == level]
        lines = []
        for measure in config["measures"]:
            cells = [
                [
                    run
                    for run in own
                    if run["measure"] == measure
                    and (run["rounds"], run["fraction"]) == column
                ]
                for column in columns
            ]
            if any(cells):
                lines.append([measure, *map(_cell, cells)])
        tables.append(Table([f"pruning {level}", *titles], lines))
    return tables


def _cell(runs: Sequence[Row]) -> str:
    """The accuracy, and the size and the speed-up where filters were removed."""
    if not runs:
        return "not run"
    text = percent([r["test_accuracy"] for r in runs])
    if runs[0]["level"] == "filters":
        left, _ = mean_and_std([r["parameters"] for r in runs])
        flops, _ = mean_and_std([r["flops"] for r in runs])
        text += f"; {left / 1e3:.1f} k; {flops / 1e6:.2g} M"
        faster = speed_up(runs)
        text += "" if faster is None else f"; {faster:.1f}x"
    return text


def speed_up(runs: Sequence[Row]) -> float | None:
    """The masked network's latency over the small one's, if it was timed."""
    timed = [run["latency"] for run in runs if run["latency"]]
    return timed[0]["masked"] / timed[0]["small"] if timed else None


def legend(found: Found) -> str:
    """Explains the cells of filters."""
    if not any(row["latency"] for row in found["results"]):
        return ""
    return (
        "Filters' rows: accuracy; parameters left, in thousands; FLOPs of an "
        "image, in millions; speed-up of the shrunk network over the masked one "
        "on the first seed's.\n"
    )


def verdicts(found: Found) -> list[str]:
    """A sentence on every claim."""
    lines = []
    for claim in found["claims"]:
        numbers = ", ".join(
            f"{name} {mean:.3g}"
            + (f" ±{std:.2g}" if found["config"]["seeds"] > 1 else "")
            for name, (mean, std) in sorted(
                claim["values"].items(), key=lambda item: item[1]
            )
        )
        lines.append(
            f"- {claim['text']} ({claim['level']}): **{VERDICTS[claim['held']]}**. "
            f"{claim['number']}: {numbers}."
        )
    return lines


VERDICTS = {True: "held", False: "did not hold", None: "is undecided"}
