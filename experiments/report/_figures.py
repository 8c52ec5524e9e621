"""The figures of a comparison, as PNGs, and the style of all figures."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.methods import METHODS
from experiments.report._tables import Found, mean_and_std, plain_rows

# Paul Tol's "muted" scheme, which readers of all kinds of color vision can tell apart,
# and markers that say the same.
STYLES = (
    ("#999999", "X"),
    ("#332288", "o"),
    ("#CC6677", "s"),
    ("#117733", "^"),
    ("#88CCEE", "D"),
    ("#882255", "v"),
    ("#DDCC77", "P"),
    ("#44AA99", "*"),
)


def figure(
    width: float, height: float, columns: int = 1, rows: int = 1
) -> tuple[Figure, Any]:
    """A figure and its panels, without pyplot's global state."""
    sheet = Figure(figsize=(width, height), layout="constrained", dpi=160)
    panels = sheet.subplots(rows, columns)
    for panel in np.atleast_1d(panels).flat:
        panel.spines[["top", "right"]].set_visible(False)
    return sheet, panels


def png(sheet: Figure) -> bytes:
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png")
    return buffer.getvalue()


def words(name: str) -> str:
    """The name of a method or a measure as text."""
    return METHODS[name].label if name in METHODS else name.replace("_", " ")


def band(panel: Any, accuracies: Any, **options: Any) -> None:
    """Draws the dense network's accuracy and its deviation."""
    mean, std = mean_and_std(accuracies)
    panel.axhspan(100 * (mean - std), 100 * (mean + std), color="0.88", lw=0)
    panel.axhline(100 * mean, color="0.35", lw=1.2, ls="--", **options)
    panel.grid(axis="y", color="0.92")


def curve(panel: Any, x: Any, y: Any, style: Any, hollow: bool, **options: Any) -> None:
    """Draws accuracies ``y``, pairs of mean and deviation, with error bars."""
    color, marker = style
    means, stds = 100 * np.array(y).T
    panel.errorbar(
        x,
        means,
        stds,
        color=color,
        marker=marker,
        ls=":" if hollow else "-",
        mfc="white" if hollow else color,
        capsize=2,
        **options,
    )


def comparison(found: Found) -> dict[str, bytes]:
    """The figures of a comparison, by name."""
    return {"accuracy.png": accuracy(found), "density.png": density(found)}


def accuracy(found: Found) -> bytes:
    """Draws test accuracy against sparsity, with error bars and the dense band."""
    rows = plain_rows(found)
    methods, sparsities = _axes(rows)
    sheet, axes = figure(8.0, 4.5)
    band(axes, rows["dense", 0.0]["test_accuracy"], label="dense")
    kept = np.array([1 - s for s in sparsities])
    axes.set_xscale("log")
    axes.set_xlim(1.2 * kept.max(), kept.min() / 1.2)
    for i, method in enumerate(methods):
        own = [s for s in sparsities if (method, s) in rows]
        again, place = divmod(i, len(STYLES))
        shift = 1.012 ** (i - (len(methods) - 1) / 2)  # Bars side by side.
        curve(
            axes,
            (1 - np.array(own)) * shift,
            [mean_and_std(rows[method, s]["test_accuracy"]) for s in own],
            STYLES[place],
            hollow=bool(again),
            label=words(method),
            lw=1.5,
            ms=10 if STYLES[place][1] == "*" else 6,
            elinewidth=1.0,
        )
    axes.set_xticks(kept, [f"{100 * s:g}" for s in sparsities])
    axes.minorticks_off()
    axes.set_xlabel("weights removed (%; log scale of those that remain)")
    axes.set_ylabel("test accuracy (%)")
    seeds = found["config"]["seeds"]
    axes.set_title(f"{found['name']}: mean ± std over {seeds} seeds", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return png(sheet)


def density(found: Found) -> bytes:
    """Draws the fraction kept of each layer, for each method: a panel a sparsity."""
    rows = plain_rows(found)
    methods, sparsities = _axes(rows)
    layers = list(rows["dense", 0.0]["density"])
    few = len(layers) <= 8
    width = 2.2 + max((0.62 if few else 0.3) * len(layers), 2.4) * len(sparsities)
    sheet, panels = figure(width, 2.4 + 0.32 * len(methods), len(sparsities))
    shades = matplotlib.colormaps["cividis"].with_extremes(bad="white")
    floor = min(1 - s for s in sparsities) / 10
    norm = LogNorm(floor, 1.0)
    image: Any = None
    for panel, sparsity in zip(np.atleast_1d(panels), sparsities, strict=True):
        nothing = {"density": dict.fromkeys(layers, np.nan)}
        own = [rows.get((m, sparsity), nothing)["density"] for m in methods]
        kept = np.array([[row[name] for name in layers] for row in own])
        shown = np.ma.masked_invalid(np.ma.masked_equal(kept, 0.0))
        image = panel.imshow(shown, cmap=shades, norm=norm, aspect="auto")
        for (row, column), value in np.ndenumerate(kept):
            if (few or value == 0) and not np.isnan(value):
                text = "100" if value >= 0.995 else f"{100 * value:.2g}"
                color = "white" if value > 0 and norm(value) < 0.45 else "black"
                place = {"ha": "center", "va": "center", "fontsize": 8}
                panel.text(column, row, text, color=color, **place)
        panel.set_title(f"{100 * sparsity:g} % removed", fontsize=10)
        panel.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
        panel.set_yticks(range(len(methods)), [words(m) for m in methods])
        panel.tick_params(length=0)
        panel.label_outer()
        panel.spines[:].set_visible(False)
    bar = sheet.colorbar(image, ax=panels, pad=0.01, fraction=0.03, extend="min")
    bar.set_label("weights kept (%)")
    ticks = [t for t in (0.001, 0.01, 0.1, 1.0) if t >= floor]
    bar.set_ticks(ticks, labels=[f"{100 * t:g}" for t in ticks])
    bar.minorticks_off()
    sheet.suptitle(f"{found['name']}: density of each layer")
    return png(sheet)


def _axes(rows: Mapping[tuple[str, float], Any]) -> tuple[list[str], list[float]]:
    """The methods except the dense network, and the sparsities from the lowest."""
    methods = dict.fromkeys(method for method, _ in rows if method != "dense")
    return list(methods), sorted({sparsity for _, sparsity in rows if sparsity})
