"""Writes experiments/README.md from the results in experiments/results.

And the measured cells of the table of methods in the README of the repository.

Run: python -m experiments.readme

A result gets there by copying what a run wrote: results.json and its figures, into a
folder of the experiment's name.
"""

import itertools
import json
import pathlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from experiments import configs, methods, results
from experiments.config import POST_TRAINING
from experiments.results import mean_and_std, percent
from experiments.rounds import VERDICTS

HERE = pathlib.Path(__file__).parent


def main() -> None:
    """Writes the page, and the cells."""
    results.write(HERE / "README.md", page(HERE / "results").encode())
    path = HERE.parent / "README.md"
    text = methods.filled(path.read_text(), HERE / "results")
    results.write(path, text.encode())


def page(folder: pathlib.Path) -> str:
    """The page on all results in a folder."""
    paths = sorted(folder.glob("*/results.json"))
    sections = [_section(path.parent, json.loads(path.read_text())) for path in paths]
    done = {path.parent.name for path in paths}
    missing = [name for _, name, _ in pkgutil.iter_modules(configs.__path__)]
    missing = [f"`{name}`" for name in missing if name not in done]
    not_run = f"Not run, or not in full: {', '.join(missing)}.\n"
    return "\n".join([_HEAD, *sections, *([not_run] if missing else [])])


_HEAD = """\
# Experiments

Written by `python -m experiments.readme` from the files in `results/`, not by hand.
Test accuracy in %, mean ± standard deviation over seeds, after the last epoch; nothing
was tuned on the test images. A run that is stopped goes on where it stood.
"""


def _section(folder: pathlib.Path, found: Mapping[str, Any]) -> str:
    name, config, place = found["name"], found["config"], found["environment"]
    module = import_module(f"experiments.configs.{name}")
    images = ", ".join(f"{n:,} {split}" for split, n in found["images"].items())
    versions = ", ".join(f"{k} {v}" for k, v in place["packages"].items())
    is_comparison = "pruning" in config
    body = _comparison(found) if is_comparison else _pipeline(found)
    figures = [
        f"![{path.stem}](results/{folder.name}/{path.name})"
        for path in sorted(folder.glob("*.png"))
    ]
    about = (module.__doc__ or "").partition("\n\nRun:")[0]
    data = "" if config["data"]["name"] == "digits" else " --data.dir=<TFDS folder>"
    lines = [
        f"## {name}\n",
        f"{about}\n",
        f"    python -m experiments.run {' '.join(place['command'])}{data}\n",
        f"Seeds: {_seeds(config['seeds'], module.config.seeds)}; "
        f"epochs: {config['epochs']}; images: {images}. "
        f"{found['seconds'] / 60:.0f} minutes on {place['cpu_count']} cores "
        f"({place['device']}); Python {place['python']}, {versions}; commit "
        f"{(place['commit'] or 'unknown')[:12]}. Scored {found['scored']}.\n",
        *body,
        *figures,
    ]
    return "\n".join(lines) + "\n"


def _seeds(run: int, wanted: int) -> str:
    return str(run) if run >= wanted else f"{run} of {wanted} (not run: the others)"


def _comparison(found: Mapping[str, Any]) -> list[str]:
    """A comparison's two tables: methods by sparsity, and their variants."""
    rows = found["results"]
    plain = {(r["method"], r["sparsity"]): r for r in rows if not r.get("variant")}
    methods = list(dict.fromkeys(method for method, _ in plain))
    sparsities = sorted({s for _, s in plain if s})
    iterative = [r["pruning_seconds"] for (m, _), r in plain.items() if m == "imp"]
    lines = []
    for method in methods:
        own = [r for (m, _), r in plain.items() if m == method]
        seconds = max(r.get("pruning_seconds") or 0.0 for r in own)
        pruned = f"{seconds:.3g} s" if seconds else "-"
        if seconds and iterative:
            pruned += f" ({max(iterative) / seconds:.0f}x)"
        at_all = own[0] if method == "dense" else None
        cells = [plain.get((method, s), at_all) for s in sparsities]
        lines.append([method, pruned, *[_accuracy(r) if r else "-" for r in cells]])
    titles = [f"{100 * s:g} % removed" for s in sparsities]
    table = _table(["method", "pruned in", *titles], lines)
    note = (
        "*Pruned in*: everything that one network takes before its last training, the "
        "longest over the sparsities"
        + (
            ", and how many times faster than iterative pruning.\n"
            if iterative
            else ".\n"
        )
    )
    late = [f"`{m}`" for m in methods if m in POST_TRAINING]
    if late:
        note += (
            f"{', '.join(late)}: trained networks, pruned and evaluated as they are "
            "then. No training follows, and *pruned in* is what pruning takes.\n"
        )
    parts = [table, note, *_fitness(plain.values())]
    variants = [r for r in rows if r.get("variant")]
    if not variants:
        return parts
    at = variants[0]["sparsity"]
    shown = [
        [r["method"], r.get("variant") or "itself", _removed(r), _accuracy(r)]
        for method in dict.fromkeys(r["method"] for r in variants)
        for r in rows
        if (r["method"], r["sparsity"]) == (method, at)
    ]
    titles = ["method", "check or ablation", "removed", "accuracy"]
    return [*parts, _table(titles, shown)]


def _fitness(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """How far the masks that K-starts chooses from differ in what it goes by."""
    lines = []
    for row in rows:
        if row.get("fitness"):
            every = np.array(row["fitness"])
            lines.append(
                f"- Fitness of the {every.shape[1]} masks of {row['method']} at "
                f"{100 * row['sparsity']:g} %: {every.mean():.3f}, standard deviation "
                f"{every.std(axis=1).mean():.2g}, best {every.max(axis=1).mean():.3f}, "
                f"worst {every.min(axis=1).mean():.3f}."
            )
    return ["\n".join([*lines, ""])] if lines else []


def _removed(row: Mapping[str, Any]) -> str:
    return f"{100 * mean_and_std(row['sparsity_reached'])[0]:.1f} %"


def _pipeline(found: Mapping[str, Any]) -> list[str]:
    """A pipeline's tables, one a level, and what became of the claims."""
    config, rows = found["config"], found["results"]
    dense = [r["test_accuracy"] for r in rows if r["measure"] == "dense"]
    parts = [f"Dense: {percent(dense)}.\n"]
    columns = list(itertools.product(config["rounds"], config["fractions"]))
    for level in sorted(config["levels"]):
        lines = []
        for measure in config["measures"]:
            cells = [
                [r for r in rows if _key(r) == (measure, level, fraction, rounds)]
                for rounds, fraction in columns
            ]
            if any(cells):
                lines.append([measure, *map(_cell(level), cells)])
        titles = [f"{100 * f:g} %, {n} round{'s' * (n > 1)}" for n, f in columns]
        parts.append(_table([f"pruning {level}", *titles], lines))
    if any(row["latency"] for row in rows):
        parts.append(
            "Filters' rows: accuracy; parameters left, in thousands; FLOPs of an "
            "image, in millions; speed-up of the shrunk network over the masked one "
            "on the first seed's.\n"
        )
    for claim in found["claims"]:
        numbers = ", ".join(
            f"{name} {mean:.3g}" + (f" ±{std:.2g}" if config["seeds"] > 1 else "")
            for name, (mean, std) in sorted(
                claim["values"].items(), key=lambda item: item[1]
            )
        )
        verdict = f"**{VERDICTS[claim['held']]}**"
        parts.append(
            f"- {claim['text']} ({claim['level']}): {verdict}. {claim['number']}: "
            f"{numbers}."
        )
    return [*parts, ""]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["measure"], row["level"], row["fraction"], row["rounds"]


def _cell(level: str) -> Callable[[Sequence[Mapping[str, Any]]], str]:
    def cell(runs: Sequence[Mapping[str, Any]]) -> str:
        if not runs:
            return "not run"
        text = percent([r["test_accuracy"] for r in runs])
        if level == "filters":
            left, _ = mean_and_std([r["parameters"] for r in runs])
            flops, _ = mean_and_std([r["flops"] for r in runs])
            text += f"; {left / 1e3:.1f} k; {flops / 1e6:.2g} M"
            timed = [r["latency"] for r in runs if r["latency"]]
            if timed:
                text += f"; {timed[0]['masked'] / timed[0]['small']:.1f}x"
        return text

    return cell


def _accuracy(row: Mapping[str, Any]) -> str:
    return percent(row["test_accuracy"])


def _table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


if __name__ == "__main__":
    main()
