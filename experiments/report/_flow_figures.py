"""The figures of the pipeline, as PNGs."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.gradient_flow import DENSE, Row
from experiments.report import _claims
from experiments.report._claims import Runs
from experiments.report._figures import STYLES, figure, png, words
from experiments.report._tables import Found, mean_and_std


def accuracy(found: Found, runs: Runs) -> bytes:
    """Accuracy against parameters, FLOPs and latency: a row of panels a rounds number.

    Filters are solid, single weights dotted. Masking single weights does not change the
    program, so their FLOPs are those that hardware could skip, at the dense latency.
    """
    name, config = found["name"], found["config"]
    costs: dict[str, Callable[[Row], float | None]] = {
        "parameters": lambda row: _share(runs, row, "parameters"),
        "FLOPs": lambda row: _share(runs, row, "flops"),
        "latency": lambda row: _latency(runs, row),
    }
    sheet, panels = figure(
        13.0, 3.6 * len(config["rounds"]), len(costs), len(config["rounds"])
    )
    mean, std = mean_and_std(values(runs, DENSE, "test_accuracy"))
    for line, rounds in zip(np.atleast_2d(panels), config["rounds"], strict=True):
        for panel, (title, cost) in zip(line, costs.items(), strict=True):
            panel.axhspan(100 * (mean - std), 100 * (mean + std), color="0.88", lw=0)
            panel.axhline(100 * mean, color="0.35", lw=1.2, ls="--")
            for measure, level, (color, marker) in _lines(config):
                rows = [Row(measure, level, f, rounds) for f in config["fractions"]]
                points = [
                    (at, *mean_and_std(values(runs, row, "test_accuracy")))
                    for row in rows
                    if row in runs and (at := cost(row)) is not None
                ]
                if points:
                    x, y, error = np.array(points).T
                    panel.errorbar(
                        x,
                        100 * y,
                        100 * error,
                        color=color,
                        marker=marker,
                        ls="-" if level == "filters" else ":",
                        mfc=color if level == "filters" else "white",
                        label=f"{words(measure)}, {level}",
                        lw=1.2,
                        ms=5,
                        capsize=2,
                    )
            panel.set_xlabel(f"{title} (% of the dense network's)")
            panel.set_title(f"{rounds} round{'s' * (rounds > 1)}", fontsize=10)
            panel.grid(axis="y", color="0.92")
        line[0].set_ylabel("test accuracy (%)")
    handles = np.atleast_2d(panels)[0, 0].get_legend_handles_labels()
    sheet.legend(*handles, loc="outside right center", frameon=False, fontsize=8)
    sheet.suptitle(
        f"{name}: mean ± std over {config['seeds']} seeds; dashed grey: dense"
    )
    return png(sheet)


def claims(found: Found, runs: Runs) -> bytes:
    """The evidence for the three claims: a row of panels a level."""
    name, config = found["name"], found["config"]
    levels = sorted(config["levels"])
    sheet, panels = figure(16.0, 3.8 * len(levels), 4, len(levels))
    for line, level in zip(np.atleast_2d(panels), levels, strict=True):
        for measure, own, (color, marker) in _lines(config):
            rows = [r for r in runs if (r.measure, r.level) == (measure, own)]
            if own != level or not rows:
                continue
            style = {"color": color, "label": words(measure), "lw": 1.3}
            first = [row for row in rows if row.rounds == min(config["rounds"])]
            for panel, field in zip(
                line[:2], ("train_loss", "distance_to_dense"), strict=True
            ):
                curve = _curve(runs, first, field)
                panel.plot(np.arange(1, len(curve) + 1), curve, **style)
            share = _mean(runs, rows, _claims.contribution)
            line[2].bar(words(measure), share, color=color)
            ratio = _mean(runs, rows, _claims.gradient_ratio)
            score = 100 * _mean(runs, rows, _claims.accuracy)
            line[3].plot(ratio, score, marker, color=color, ms=8)
            line[3].annotate(
                words(measure),
                (ratio, score),
                (5, 5),
                fontsize=7,
                textcoords="offset points",
            )
        line[0].set(xlabel="epoch", ylabel="training loss", yscale="log")
        line[0].set_title(f"(i) {level}: convergence", fontsize=10)
        line[0].legend(frameon=False, fontsize=7)
        line[1].set(xlabel="epoch", ylabel="distance of the logits")
        line[1].set_title("(ii) from the dense network's trajectory", fontsize=10)
        line[2].axhline(1.0, color="0.35", lw=1, ls="--")
        line[2].tick_params("x", rotation=60, labelsize=7)
        line[2].set_title("(i) contribution of removed weights", fontsize=10)
        line[3].axvline(1.0, color="0.35", lw=1, ls="--")
        line[3].set(
            xlabel="|g|² after / before", ylabel="test accuracy (%)", xscale="log"
        )
        line[3].set_title("(iii) gradient norm and accuracy", fontsize=10)
    sheet.suptitle(f"{name}: the claims of Lubana & Dick (2021)")
    return png(sheet)


def diagnostics(found: Found, runs: Runs) -> bytes:
    """Predicted against measured changes; measures against each other, over epochs."""
    name, config = found["name"], found["config"]
    sheet, panels = figure(16.0, 4.2, 4)
    for measure, level, (color, marker) in _lines(config):
        rows = [r for r in runs if (r.measure, r.level) == (measure, level)]
        prunes = [p for row in rows for run in runs[row] for p in run["prunes"]]
        for panel, field in zip(panels[:2], ("loss", "squared_gradient"), strict=True):
            change = [p[field][1] - p[field][0] for p in prunes]
            panel.plot(
                [p["predicted"][field] for p in prunes],
                change,
                marker,
                color=color,
                mfc=color if level == "filters" else "white",
                ms=4,
                ls="",
            )
    for panel, title in zip(panels[:2], ("loss", "squared gradient norm"), strict=True):
        panel.axline((0, 0), slope=1, color="0.35", lw=1, ls="--")
        panel.set(xlabel="predicted, first order", ylabel="measured")
        panel.set_xscale("symlog", linthresh=1e-3)
        panel.set_yscale("symlog", linthresh=1e-3)
        panel.tick_params("x", rotation=90, labelsize=7)
        panel.set_title(f"change of {title} by a pruning", fontsize=10)
    epochs = [run["epochs"] for run in runs[DENSE]]
    for pair in epochs[0][0]["measures"]["correlations"]:
        if pair.startswith("magnitude, "):
            color, _ = _style(config, pair.split(", ")[1])
            curve = [
                statistics.mean(
                    seed[n]["measures"]["correlations"][pair]["spearman"]
                    for seed in epochs
                )
                for n in range(config["epochs"])
            ]
            label = words(pair.split(", ")[1])
            panels[2].plot(
                range(1, config["epochs"] + 1), curve, color=color, label=label
            )
    for measure in config["measures"]:
        curve = [
            statistics.mean(
                seed[n]["measures"]["mask_distance"][measure] for seed in epochs
            )
            for n in range(1, config["epochs"])
        ]
        color, _ = _style(config, measure)
        panels[3].plot(
            range(2, config["epochs"] + 1), curve, color=color, label=words(measure)
        )
    panels[2].set(xlabel="epoch", ylabel="Spearman's correlation with magnitude")
    panels[2].set_title("dense network: weights' scores", fontsize=10)
    panels[3].set(xlabel="epoch", ylabel="distance from the epoch before")
    panels[3].set_title("dense network: filter masks", fontsize=10)
    for panel in panels[2:]:
        panel.legend(frameon=False, fontsize=7)
    sheet.suptitle(f"{name}: what the gradient flow says")
    return png(sheet)


def _lines(config: Mapping[str, Any]) -> Sequence[tuple[str, str, tuple[str, str]]]:
    return [
        (measure, level, _style(config, measure))
        for measure in config["measures"]
        for level in sorted(config["levels"])
    ]


def _style(config: Mapping[str, Any], measure: str) -> tuple[str, str]:
    """A measure's color and marker; the first of the scheme is the dense network's."""
    return STYLES[1 + config["measures"].index(measure) % (len(STYLES) - 1)]


def _share(runs: Runs, row: Row, field: str) -> float:
    """What is left, in per cent."""
    left, whole = (statistics.mean(values(runs, r, field)) for r in (row, DENSE))
    return 100 * left / whole


def _latency(runs: Runs, row: Row) -> float | None:
    faster = 1.0 if row.level == "weights" else speed_up(runs, row)
    return None if faster is None else 100 / faster


def _mean(runs: Runs, rows: Sequence[Row], of: _claims.Number) -> float:
    return statistics.mean(of(row, run) for row in rows for run in runs[row])


def _curve(runs: Runs, rows: Sequence[Row], field: str) -> Any:
    return np.mean(
        [[e[field] for e in run["epochs"]] for row in rows for run in runs[row]], axis=0
    )


def values(runs: Runs, row: Row, field: str) -> list[float]:
    """One number of every seed's run."""
    return [run[field] for run in runs[row]]


def speed_up(runs: Runs, row: Row) -> float | None:
    """Latency of the masked network over the small one's, where it was timed."""
    timed = [run["latency"] for run in runs[row] if run["latency"]]
    return timed[0]["masked"] / timed[0]["small"] if timed else None
