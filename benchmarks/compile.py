"""What a user waits for before the first result: tracing and compiling, from cold.

Every figure comes from a process that has neither traced nor compiled anything, without
JAX's persistent cache; weights, scores and masks are drawn by NumPy. A run measures
everything once, in an order drawn anew; figures are medians over the runs.

- jit: the function under jax.jit. "trace" is Python's part, to the program that XLA
  is given; "compile" is XLA's. The first call is both and one execution.
- eager: the function called as it is, by which many small programs may be compiled;
  the first call is what counts. summary is printed. iterative_mask scores by snip in
  3 rounds, and cost includes tracing the network.
- maps: memory maps that the process holds more than before (lines of /proc/self/maps).
  Linux ends a process at some 65,530. Arrays take none here, as glibc keeps memory.

The ratio is that of trace + compile to the alternative below, the median over the runs;
of an eager call, that of the first call to the alternative's.

- sort: one jnp.sort of all matrices, concatenated, and a threshold.
- argsort: a jnp.argsort of every matrix, and a mask scattered from its first entries.
- dense: one step of adamw, with the loss and its gradient.

What sort takes is counted with half a second added. `--many 1000` masks so many
trees of different shapes in one process, eagerly and under jit, and measures only that.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import tyro

from benchmarks._apart import run_apart
from benchmarks._compile import EAGER, MASKS, PLAIN, SCORES, STEPS, Found, How, Many
from benchmarks._leaves import build
from benchmarks._measure import Bar, in_turn, ratio, show

Name = Literal["resnet50", "vit", "llama", "tiny"]
Cell = tuple[str, str, str]  # Network, item, how.

_SORT_EXTRA = 0.5  # Seconds granted beside the sort.
_MAPS = 40  # Memory maps that a mask may hold.
_BESIDE = {
    "global_mask": "sort",
    "block_mask": "sort",
    "layerwise_mask": "argsort",
    "n_m_mask": "argsort",
    "row_mask": "argsort",
    "iterative_mask": "dense",
    "snip": "dense",
    **{name: "dense" for name in STEPS if name != "dense"},
}
_LIMITS = {
    "global_mask": 1.5,
    "layerwise_mask": 1.5,
    "keep_sparse": 1.15,
    "gradual": 1.5,
    "rigl": 2.0,
    "set_training": 2.0,
    "granet": 2.0,
}
# Seconds of the first call.
_FIRST = {
    ("resnet50", "summary"): 1.0,
    ("resnet50", "apply_mask"): 0.5,
    ("llama", "global_mask"): 2.0,
}
_COLUMNS = (
    *("network", "item", "how", "trace", "compile"),
    *("first call", "second call", "maps", "ratio", "bar"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compile, and how often."""

    networks: tuple[Name, ...] = ("resnet50", "vit", "llama")
    """Which networks; llama has 30 layers, none of them stacked."""
    items: tuple[str, ...] = (*MASKS, *SCORES, *EAGER, *STEPS)
    """What to measure, with the alternatives that it is compared with."""
    how: tuple[How, ...] = get_args(How)
    """Under jit, eager or both; masks are measured both ways."""
    runs: int = 3
    """How often everything is measured."""
    many: int = 0
    """If positive, only mask so many different trees in one process."""

    def __post_init__(self) -> None:
        """Raises for items that do not exist."""
        known = (*MASKS, *PLAIN, *SCORES, *EAGER, *STEPS)
        if unknown := set(self.items) - set(known):
            raise ValueError(f"No such items: {sorted(unknown)}; there are {known}.")


class Row(NamedTuple):
    """One function of one network; seconds, NaN for what was not measured."""

    problem: str
    item: str
    how: str
    trace: float
    compile: float
    first: float
    second: float
    maps: float
    ratio: float
    bars: tuple[Bar, ...]


class ManyRow(NamedTuple):
    """Many trees masked in one process."""

    how: str
    masked: int
    seconds: float
    maps: float
    bars: tuple[Bar, ...]


def measure(options: Options) -> list[Row]:
    """Measures everything in turn, each in a process of its own."""
    found: dict[Cell, list[Found]] = {cell: [] for cell in _cells(options)}

    def run(cell: Cell) -> None:
        found[cell].append(Found(*_run(*cell)))

    in_turn({str(cell): lambda cell=cell: run(cell) for cell in found}, options.runs)
    return [_row(cell, found) for cell in found]


def measure_many(options: Options) -> list[ManyRow]:
    """Masks many trees eagerly and under jit, each in a process of its own."""
    rows = []
    for how in options.how:
        done = Many(*_run("tiny", "global_mask", how, options.many))
        bars = (
            Bar(done.masked, options.many, at_least=True, name="trees"),
            Bar(done.maps / done.masked, _MAPS, name="maps a mask"),
        )
        rows.append(ManyRow(how, *done, bars))
    return rows


def _run(network: str, item: str, how: str, many: int = 0) -> Any:
    return run_apart(
        "benchmarks._compile",
        *("--network", network, "--item", item, "--how", how, "--many", str(many)),
        environment={"JAX_ENABLE_COMPILATION_CACHE": "false"},
        check=not many,  # Too many maps end the process.
    )


def _cells(options: Options) -> list[Cell]:
    """What is measured: for every network the alternatives first."""
    cells = []
    for network in options.networks:
        wanted = [
            (i, how) for i in options.items for how in options.how if _has(i, how)
        ]
        beside = {_BESIDE[item]: None for item, _ in wanted if item in _BESIDE}
        plain = [(item, "jit") for item in beside]
        cells += [(network, *c) for c in dict.fromkeys([*plain, *wanted])]
    return cells


def _has(item: str, how: str) -> bool:
    """Whether an item is measured so: masks in both ways, all others in one."""
    return item in MASKS or (item in EAGER) == (how == "eager")


def _row(cell: Cell, found: Mapping[Cell, list[Found]]) -> Row:
    network, item, how = cell
    runs = found[cell]
    medians = Found(*np.median(runs, axis=0).tolist())
    quotient, bars = float("nan"), []
    if item in _BESIDE:
        beside = _BESIDE[item]
        theirs = _seconds(found[network, beside, "jit"], how)
        extra = _SORT_EXTRA if beside == "sort" else 0.0
        quotient = ratio(_seconds(runs, how), theirs + extra)
    if item in _LIMITS:
        bars.append(Bar(quotient, _LIMITS[item], name=f"to {_BESIDE[item]}"))
    if (network, item) in _FIRST:
        bars.append(Bar(medians.first, _FIRST[network, item], name="first, s"))
    if item in MASKS:
        bars.append(Bar(medians.maps, _MAPS, name="maps"))
    return Row(*cell, *medians, quotient, tuple(bars))


def _seconds(runs: list[Found], how: str) -> np.ndarray:
    """What counts, run by run: trace and compile, or the first call."""
    if how == "eager":
        return np.array([run.first for run in runs])
    return np.array([run.trace + run.compile for run in runs])


def main(options: Options) -> None:
    """Prints the table."""
    if options.many:
        show(
            f"Masks of {options.many:,} different trees in one process",
            ("how", "trees masked", "s", "maps", "bar"),
            measure_many(options),
            __doc__ or "",
        )
        return
    rows = [
        tuple("-" if value != value else value for value in row)
        for row in measure(options)
    ]
    notes = [build(name).description for name in options.networks]
    show(
        f"Seconds from a cold start, medians of {options.runs} runs",
        _COLUMNS,
        rows,
        "\n".join([__doc__ or "", *notes]),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
