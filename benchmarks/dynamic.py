"""What masks that move add to a step: off the updates of the mask, and on them.

Every step computes the loss and its gradient and takes one step of adamw, with donated
parameters and state. The steps take turns, one at a time; the last of every `every` is
due, and moves the mask. The forward passes through a sparse network (STE, SR-STE) make
a mask in every step: to them all steps are due. Ratios are to the dense step of the
same turn, medians over the steps; "dense, again" is the dense step once more: what it
differs by is noise. "argsort" is JaxPruner's algorithm re-stated, with a sort of every
leaf; the bar in its column is how many times faster ours is on a step that is due.
Four seeds are four networks in one vmapped step, nine million weights together. Fewer
may fit into the processor's caches, and then it costs more that the optimizer has to
wait, behind the mask's update, until all gradients are there. Memory once mapped is
kept: with glibc's own ways, each step pays for 10,000 and more fresh pages.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import optax
import tyro

import jaxprune as jp
from benchmarks import _argsort
from benchmarks._measure import Bar, in_turn, keep_memory, show
from benchmarks._models import Networks, Problem
from benchmarks._steps import train_step

Step = Literal[
    "static",
    "set",
    "rigl",
    "granet",
    "gradual",
    "gradual_n_m",
    "ste",
    "sr_ste",
    "argsort set",
    "argsort rigl",
    "argsort gradual",
]

_NETWORKS = Networks(batch_size=256, widths=(3072, 2048, 1792, 10))
_VMAPPED = Networks(names=("mlp",), widths=(784, 1152, 1152, 12))
_SPARSITY = 0.9
_FRACTION = 0.3
_LARGE = 5_000_000  # Weights from which on the due step has a bar.
_OFF, _FASTER = 1.05, 10.0


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time, and how often."""

    steps: tuple[Step, ...] = get_args(Step)
    """What to time beside the dense step."""
    runs: int = 5
    """How many runs of `every` steps."""
    every: int = 20
    """Steps between mask updates."""
    seconds: float = 40.0
    """A step that has taken this long in total sits out the rest."""
    networks: Networks = _NETWORKS
    """The networks and the batch."""
    vmapped: Networks = _VMAPPED
    """The same, of which `seeds` are trained in one step."""
    seeds: int = 4
    """Networks in a vmapped step."""


class Row(NamedTuple):
    """One kind of step of one network; seconds and ratios to dense, NaN for none."""

    problem: str
    step: str
    off_seconds: float
    off_ratio: float
    due_seconds: float
    due_ratio: float
    bars: tuple[Bar, ...]


def measure(options: Options) -> list[Row]:
    """Times the steps of all networks."""
    return [
        *[r for p in options.networks.build() for r in _measure(p, options, None)],
        *[
            r
            for p in options.vmapped.build()
            for r in _measure(p, options, options.seeds)
        ],
    ]


def _measure(problem: Problem, options: Options, seeds: int | None) -> list[Row]:
    steps = _steps(problem, options, seeds)
    count = options.runs * options.every
    times = in_turn(steps, count, seconds=options.seconds)
    large = sum(leaf.size for leaf in jax.tree.leaves(problem.params)) >= _LARGE
    name = problem.name if seeds is None else f"{seeds} x {problem.name}"
    rows = [
        _row(name, step, spent, times["dense"], options.every)
        for step, spent in times.items()
    ]
    due = {row.step: row.due_seconds for row in rows}
    return [_with_bars(row, due, large) for row in rows]


def _row(
    problem: str, step: str, spent: np.ndarray, dense: np.ndarray, every: int
) -> Row:
    rounds = min(len(spent), len(dense))  # Either may have sat out the last ones.
    spent, ratios = spent[:rounds], spent[:rounds] / dense[:rounds]
    is_due = np.arange(rounds) % every == every - 1
    if step in _EVERY_STEP:
        is_due = np.ones_like(is_due)
    if step.startswith(("dense", "static")):
        is_due = np.zeros_like(is_due)

    def median(x: np.ndarray) -> float:
        return float(np.median(x)) if x.size else math.nan

    off = (median(spent[~is_due]), median(ratios[~is_due]))
    due = (median(spent[is_due]), median(ratios[is_due]))
    return Row(problem, step, *off, *due, ())


def _with_bars(row: Row, due: dict[str, float], large: bool) -> Row:
    bars = []
    if not row.step.startswith(("dense", "argsort")) and row.step not in _EVERY_STEP:
        bars.append(Bar(row.off_ratio, _OFF, name="off"))
    theirs = due.get(f"argsort {row.step}", math.nan)
    if large and not math.isnan(theirs):
        faster = theirs / row.due_seconds
        bars.append(Bar(faster, _FASTER, at_least=True, name="argsort / due"))
    return row._replace(bars=tuple(bars))


def _steps(
    problem: Problem, options: Options, seeds: int | None
) -> dict[str, Callable[[], Any]]:
    """Every step by name; those that start sparse start from the same weights."""
    adamw, every = optax.adamw(1e-3), options.every
    mask = jp.layerwise_mask(jp.magnitude(problem.params), _SPARSITY)
    whole = jax.tree.map(lambda m: m | True, mask)
    total = options.runs * every
    schedule = optax.polynomial_schedule(0.0, _SPARSITY, 3, total)
    to_two = optax.linear_schedule(4, 2, total)
    moving = {"every": every, "until": total + 1, "drop_fraction": _FRACTION}
    four = jp.divisible_by(4)
    key = jax.random.key(0)

    step = functools.partial(train_step, problem, seeds=seeds)
    sparse = functools.partial(step, params=jp.apply_mask(problem.params, mask))

    def through(mask_fn: Callable[[Any], Any], decay: float = 0.0) -> Callable[[], Any]:
        return step(adamw, loss=jp.forward_sparse(problem.loss, mask_fn, decay=decay))

    def largest(params: Any) -> Any:
        return jp.global_mask(jp.magnitude(params), _SPARSITY)

    def two_of_four(params: Any) -> Any:
        return jp.n_m_mask(jp.magnitude(params), 2, 4, prunable=four)

    def argsort(mask: Any, new_mask: _argsort.NewMask) -> Any:
        return _argsort.wrap(adamw, mask, new_mask, every)

    build: dict[str, Callable[[], Callable[[], Any]]] = {
        "static": lambda: sparse(jp.sparse(adamw, mask)),
        "set": lambda: sparse(jp.set_training(adamw, mask, key=key, **moving)),
        "rigl": lambda: sparse(jp.rigl(adamw, mask, **moving)),
        "granet": lambda: step(jp.granet(adamw, schedule, **moving)),
        "gradual": lambda: step(optax.chain(adamw, jp.gradual(schedule, every=every))),
        "gradual_n_m": lambda: step(
            optax.chain(adamw, jp.gradual_n_m(to_two, 4, every=every, prunable=four))
        ),
        "ste": lambda: through(largest),
        "sr_ste": lambda: through(two_of_four, 2e-4),
        "argsort set": lambda: sparse(argsort(mask, _argsort.set_training(_FRACTION))),
        "argsort rigl": lambda: sparse(argsort(mask, _argsort.rigl(_FRACTION))),
        "argsort gradual": lambda: step(argsort(whole, _argsort.gradual(schedule))),
    }
    return {
        "dense": step(adamw),
        "dense, again": step(adamw),
        **{name: build[name]() for name in options.steps},
    }


_EVERY_STEP = ("ste", "sr_ste")


def main(options: Options) -> None:
    """Prints the table."""
    keep_memory()
    problems = [*options.networks.build(), *options.vmapped.build()]
    notes = [p.description for p in problems]
    rows = [
        (
            row.problem,
            row.step,
            row.off_seconds * 1e3,
            row.off_ratio,
            row.due_seconds * 1e3,
            row.due_ratio,
            row.bars,
        )
        for row in measure(options)
    ]
    show(
        f"A train step, {options.runs} runs of {options.every} (sparsity {_SPARSITY})",
        ("network", "step", "off ms", "to dense", "due ms", "to dense", "bar"),
        rows,
        "\n".join([__doc__ or "", *notes]),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
