"""The figures of pruning in rounds, as PNGs."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.gradient_flow import DENSE, Row
from experiments.report import _claims
from experiments.report._claims import Run, Runs
from experiments.report._figures import STYLES, band, curve, figure, png, words
from experiments.report._tables import Found, mean_and_std, speed_up


def rounds(found: Found) -> dict[str, bytes]:
    """The figures of pruning in rounds, by name."""
    runs = _claims.gather(found["results"])
    return {
        "accuracy.png": accuracy(found, runs),
        "claims.png": claims(found, runs),
        "diagnostics.png": diagnostics(found, runs),
    }


def accuracy(found: Found, runs: Runs) -> bytes:
    """Accuracy against parameters, FLOPs and latency: a row of panels a rounds number.

    Filters are solid, single weights dotted. Masking single weights does not change the
    program: their FLOPs are those that hardware could skip, at the dense latency.
    """
    config = found["config"]
    costs: dict[str, Callable[[Row], float | None]] = {
        "parameters": lambda row: _share(runs, row, "parameters"),
        "FLOPs": lambda row: _share(runs, row, "flops"),
        "latency": lambda row: _latency(runs, row),
    }
    height = 3.6 * len(config["rounds"])
    sheet, panels = figure(13.0, height, len(costs), len(config["rounds"]))
    for line, rounds in zip(np.atleast_2d(panels), config["rounds"], strict=True):
        for panel, (title, cost) in zip(line, costs.items(), strict=True):
            band(panel, _values(runs, DENSE, "test_accuracy"))
            for measure, level, style in _lines(config):
                rows = [Row(measure, level, f, rounds) for f in config["fractions"]]
                points = [
                    (at, mean_and_std(_values(runs, row, "test_accuracy")))
                    for row in rows
                    if row in runs and (at := cost(row)) is not None
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    label = f"{words(measure)}, {level}"
                    hollow = level == "weights"
                    curve(panel, x, y, style, hollow, label=label, lw=1.2, ms=5)
            panel.set_xlabel(f"{title} (% of the dense network's)")
            panel.set_title(f"{rounds} round{'s' * (rounds > 1)}", fontsize=10)
        line[0].set_ylabel("test accuracy (%)")
    handles = np.atleast_2d(panels)[0, 0].get_legend_handles_labels()
    sheet.legend(*handles, loc="outside right center", frameon=False, fontsize=8)
    seeds = f"mean ± std over {config['seeds']} seeds"
    sheet.suptitle(f"{found['name']}: {seeds}; dashed grey: dense")
    return png(sheet)


def claims(found: Found, runs: Runs) -> bytes:
    """The evidence for the three claims: a row of panels a level."""
    config = found["config"]
    levels = sorted(config["levels"])
    sheet, panels = figure(16.0, 3.8 * len(levels), 4, len(levels))
    for line, level in zip(np.atleast_2d(panels), levels, strict=True):
        losses, distances, shares, norms = line
        for measure, own, (color, marker) in _lines(config):
            rows = [r for r in runs if (r.measure, r.level) == (measure, own)]
            if own != level or not rows:
                continue
            first = [row for row in rows if row.rounds == min(config["rounds"])]
            for panel, field in (
                (losses, "train_loss"),
                (distances, "distance_to_dense"),
            ):
                y = _curve(runs, first, field)
                x = np.arange(1, len(y) + 1)
                panel.plot(x, y, color=color, label=words(measure), lw=1.3)
            share = _mean(runs, rows, _claims.contribution)
            shares.bar(words(measure), share, color=color)
            ratio = _mean(runs, rows, _claims.gradient_ratio)
            score = 100 * _mean(runs, rows, _claims.accuracy)
            norms.plot(ratio, score, marker, color=color, ms=8)
            offset = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 7}
            norms.annotate(words(measure), (ratio, score), **offset)
        _label(losses, f"(i) {level}: convergence", "epoch", "training loss")
        losses.set_yscale("log")
        losses.legend(frameon=False, fontsize=7)
        title = "(ii) from the dense network's trajectory"
        _label(distances, title, "epoch", "distance of the logits")
        _label(shares, "(i) contribution of removed weights")
        shares.axhline(1.0, color="0.35", lw=1, ls="--")
        shares.tick_params("x", rotation=60, labelsize=7)
        title = "(iii) gradient norm and accuracy"
        _label(norms, title, "|g|² after / before", "test accuracy (%)")
        norms.axvline(1.0, color="0.35", lw=1, ls="--")
        norms.set_xscale("log")
    sheet.suptitle(f"{found['name']}: the claims of Lubana & Dick (2021)")
    return png(sheet)


def diagnostics(found: Found, runs: Runs) -> bytes:
    """Predicted against measured changes; measures against each other, over epochs."""
    config = found["config"]
    sheet, (losses, norms, similar, moved) = figure(16.0, 4.2, 4)
    changes = {
        "loss": (losses, "loss"),
        "squared_gradient": (norms, "squared gradient norm"),
    }
    for field, (panel, title) in changes.items():
        for measure, level, (color, marker) in _lines(config):
            rows = [r for r in runs if (r.measure, r.level) == (measure, level)]
            prunes = [p for row in rows for run in runs[row] for p in run["prunes"]]
            predicted = [p["predicted"][field] for p in prunes]
            change = [p[field][1] - p[field][0] for p in prunes]
            fill = color if level == "filters" else "white"
            panel.plot(predicted, change, marker, color=color, mfc=fill, ms=4, ls="")
        panel.axline((0, 0), slope=1, color="0.35", lw=1, ls="--")
        panel.set_xscale("symlog", linthresh=1e-3)
        panel.set_yscale("symlog", linthresh=1e-3)
        panel.tick_params("x", rotation=90, labelsize=7)
        title = f"change of {title} by a pruning"
        _label(panel, title, "predicted, first order", "measured")

    dense = [[epoch["measures"] for epoch in run["epochs"]] for run in runs[DENSE]]

    def plot(panel: Any, measure: str, of: Callable[[Any], float], begin: int) -> None:
        """Draws a number of the dense network over the epochs from ``begin`` on."""
        epochs = range(begin, config["epochs"] + 1)
        y = [statistics.mean(of(seed[n - 1]) for seed in dense) for n in epochs]
        color, _ = _style(config, measure)
        panel.plot(epochs, y, color=color, label=words(measure))

    for pair in dense[0][0]["correlations"]:
        if pair.startswith("magnitude, "):
            measure = pair.split(", ")[1]
            plot(
                similar, measure, lambda e, p=pair: e["correlations"][p]["spearman"], 1
            )
    for measure in config["measures"]:
        plot(moved, measure, lambda e, m=measure: e["mask_distance"][m], 2)
    title = "dense network: weights' scores"
    _label(similar, title, "epoch", "Spearman's correlation with magnitude")
    title = "dense network: filter masks"
    _label(moved, title, "epoch", "distance from the epoch before")
    for panel in (similar, moved):
        panel.legend(frameon=False, fontsize=7)
    sheet.suptitle(f"{found['name']}: predictions of the gradient flow")
    return png(sheet)


def _label(panel: Any, title: str, x: str = "", y: str = "") -> None:
    panel.set(xlabel=x, ylabel=y)
    panel.set_title(title, fontsize=10)


def _lines(config: Mapping[str, Any]) -> Sequence[tuple[str, str, tuple[str, str]]]:
    return [
        (measure, level, _style(config, measure))
        for measure in config["measures"]
        for level in sorted(config["levels"])
    ]


def _style(config: Mapping[str, Any], measure: str) -> tuple[str, str]:
    """A measure's color and marker; the first of the scheme is the dense network's."""
    return STYLES[1 + config["measures"].index(measure) % (len(STYLES) - 1)]


def _values(runs: Runs, row: Row, field: str) -> list[float]:
    return [run[field] for run in runs[row]]


def _share(runs: Runs, row: Row, field: str) -> float:
    """The remaining share, in %."""
    left, whole = (statistics.mean(_values(runs, r, field)) for r in (row, DENSE))
    return 100 * left / whole


def _latency(runs: Runs, row: Row) -> float | None:
    faster = 1.0 if row.level == "weights" else speed_up(runs[row])
    return None if faster is None else 100 / faster


def _mean(runs: Runs, rows: Sequence[Row], of: Callable[[Run], float]) -> float:
    return statistics.mean(of(run) for row in rows for run in runs[row])


def _curve(runs: Runs, rows: Sequence[Row], field: str) -> Any:
    curves = [[e[field] for e in run["epochs"]] for row in rows for run in runs[row]]
    return np.mean(curves, axis=0)
