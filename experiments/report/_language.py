"""The tables, the figure and the section on a language model."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.report._figures import STYLES, figure, png, words
from experiments.report._tables import Found, Row, Table


def parts(found: Found) -> Sequence[Any]:
    """Both tables, and what they show."""
    return [weights(found), structures(found), notes(found)]


def weights(found: Found) -> Table:
    """The dense model, and those without single weights."""
    dense = _dense(found)
    size = 4 * dense["parameters"]  # Bytes in float32.
    lines = [
        [
            _label(row),
            row["words"] or "-",
            _perplexity(row["perplexity"], dense),
            _time(row),
            f"{row['peak_bytes'] / size:.2f}" if row.get("peak_bytes") else "-",
            f"{row['disk_bytes'] / 1e6:.0f} MB",
        ]
        for row in found["results"]
        if "recovered" not in row
    ]
    titles = ["method", "removed", "perplexity (over dense)", "pruned in"]
    titles += ["memory, of the model's", "on disk"]
    return Table(titles, lines, "Single weights removed")


def structures(found: Found) -> Table:
    """The dense model, and smaller ones before and after recovery."""
    dense = _dense(found)
    lines = [
        [
            f"{_label(row)} {row['words']}".strip(),
            f"{row['parameters'] / 1e6:.0f} M",
            _perplexity(row["perplexity"], dense),
            _perplexity(row["recovered"]["perplexity"], dense) if own else "-",
            _time(row),
            _time(row["recovered"]) if own else "-",
            f"{row['disk_bytes'] / 1e6:.0f} MB",
            f"{row['tokens_per_second']:.1f}",
        ]
        for row in found["results"]
        if (own := "recovered" in row) or row is dense
    ]
    titles = ["removed whole", "parameters", "perplexity", "recovered"]
    titles += ["pruned in", "recovered in", "on disk", "tokens/s"]
    return Table(titles, lines, "Hidden units, heads and blocks removed")


def notes(found: Found) -> str:
    """What the tables show, and the sample."""
    data, recovery = found["config"]["data"], found["config"]["recovery"]
    tokens = data["calibration"] * data["length"]
    lessons = recovery["steps"] * recovery["batch_size"] * recovery["length"]
    first = found["config"]["first"]
    return (
        f"Perplexity on {data['evaluation']} sequences of {data['length']} tokens, "
        f"each on its own; {tokens:,} tokens to calibrate, {lessons:,} to recover. "
        "All layers of a block have one sparsity; with OWL, blocks differ. *Pruned in* "
        "includes compilation. *Memory*: the most in use while pruning, above what the "
        "process held before, over the model's size in float32.\n"
        + (f"\nOnly the first {first} blocks lost single weights.\n" if first else "")
        + f"\nThe dense model continues: *{_dense(found)['sample'].strip()}*\n"
    )


def figures(found: Found) -> dict[str, bytes]:
    """The one figure, by name."""
    return {"perplexity.png": _perplexities(found)}


def _perplexities(found: Found) -> bytes:
    """Draws the perplexity of every row over that of the dense model."""
    dense = _dense(found)
    rows = [row for row in found["results"] if row is not dense]
    names = list(dict.fromkeys(_group(row) for row in rows))
    sheet, axes = figure(8.0, 1.2 + 0.27 * len(rows))
    labels = []
    for height, row in enumerate(rows):
        color, marker = STYLES[1 + names.index(_group(row)) % (len(STYLES) - 1)]
        over = row["perplexity"] / dense["perplexity"]
        axes.plot(over, height, marker, color=color, ms=8)
        if "recovered" in row:
            after = row["recovered"]["perplexity"] / dense["perplexity"]
            axes.plot(after, height, marker, color=color, mfc="white", ms=8)
            axes.plot([over, after], [height, height], color=color, lw=1, zorder=0)
        labels.append(f"{_label(row)} {row['words']}".strip())
    axes.axvline(1.0, color="0.35", lw=1.2, ls="--")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("perplexity over the dense model's (log scale; hollow: recovered)")
    axes.set_title(found["name"], loc="left")
    axes.grid(axis="x", color="0.92")
    return png(sheet)


def _dense(found: Found) -> Row:
    return next(row for row in found["results"] if row["method"] == "dense")


def _group(row: Row) -> str:
    return "whole" if "recovered" in row else row["words"]


def _label(row: Row) -> str:
    labels = {"wanda_dsnot": "Wanda, DSnoT", "ria": "RIA", "admm": "ADMM"}
    return labels.get(row["method"], words(row["method"]))


def _perplexity(value: float, dense: Row) -> str:
    return f"{value:.1f} ({value / dense['perplexity']:.2f})"


def _time(row: Row) -> str:
    return f"{row['seconds']:.0f} s" if row.get("seconds") else "-"
