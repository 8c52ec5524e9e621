"""What sparse training adds to a step: a jitted train step with and without it.

Every step computes the loss and its gradient and takes one step of adamw, with donated
parameters and state. The steps take turns, one at a time. A run is `every` of them, the
last of which is due in gradual, which thereby recomputes its mask, along a cubic
schedule. "dense, again" is the dense step once more: what it differs by is noise.
Each ratio is the median over the runs. A run's is the median of a step's time over that
of the dense step of the same turn; for the amortised cost it is the total over the
dense total, for "due" the whole due step over the median dense step. Memory once mapped
is kept, as by the allocators of accelerators.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro

import jaxprune as jp
from benchmarks._measure import Bar, in_turn, keep_memory, show
from benchmarks._models import Networks, Problem
from benchmarks._steps import train_step

_SPARSITY = 0.9
_NETWORKS = Networks(batch_size=256, widths=(3072, 2048, 1792, 10), side=16)
_LARGE = 5_000_000  # Weights from which on the cost of the due step has a bar.


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time, and how often."""

    runs: int = 5
    """How many runs of `every` steps."""
    every: int = 100
    """Steps between mask updates."""
    networks: Networks = _NETWORKS
    """The networks and the batch."""


class Row(NamedTuple):
    """One kind of step of one network; `ratio` is to the dense step."""

    problem: str
    step: str
    seconds: float
    ratio: float
    bars: tuple[Bar, ...]


def measure(options: Options) -> list[Row]:
    """Times the steps of both networks."""
    return [
        r for problem in options.networks.build() for r in _measure(problem, options)
    ]


def _measure(problem: Problem, options: Options) -> list[Row]:
    adamw = optax.adamw(1e-3)
    mask = jp.global_mask(jp.magnitude(problem.params), _SPARSITY)
    schedule = optax.polynomial_schedule(
        0.0, _SPARSITY, power=3, transition_steps=options.runs * options.every
    )
    gradual = jp.gradual(schedule, every=options.every)
    steps = {
        "dense": train_step(problem, adamw),
        "dense, again": train_step(problem, adamw),
        "keep_sparse": train_step(problem, optax.chain(adamw, jp.keep_sparse(mask))),
        "sparse": train_step(problem, jp.sparse(adamw, mask)),
        "gradual": train_step(problem, optax.chain(adamw, gradual)),
    }
    times = {
        name: spent.reshape(options.runs, options.every)
        for name, spent in in_turn(steps, options.runs * options.every).items()
    }
    dense = np.median(times["dense"], axis=1)
    rows = [Row(problem.name, "dense", float(np.median(dense)), 1.0, ())]

    def add(name: str, spent: np.ndarray, costs: np.ndarray, limit: Any) -> None:
        cost = float(np.median(costs))
        bars = () if limit is None else (Bar(cost, limit),)
        rows.append(Row(problem.name, name, float(np.median(spent)), cost, bars))

    for name in ("dense, again", "keep_sparse", "sparse", "gradual"):
        off, reference = times[name][:, :-1], times["dense"][:, :-1]
        label = "gradual, off" if name == "gradual" else name
        limit = None if name == "dense, again" else 1.03
        add(label, off, np.median(off / reference, axis=1), limit)
    means = {name: spent.mean(axis=1) for name, spent in times.items()}
    add("gradual, amortised", means["gradual"], means["gradual"] / means["dense"], 1.04)
    large = sum(leaf.size for leaf in jax.tree.leaves(problem.params)) >= _LARGE
    due = times["gradual"][:, -1]
    add("gradual, due", due, due / dense, 2.0 if large else None)
    return rows


def main(options: Options) -> None:
    """Prints the table."""
    keep_memory()
    notes = [p.description for p in options.networks.build()]
    rows = [
        (row.problem, row.step, row.seconds * 1e3, row.ratio, row.bars)
        for row in measure(options)
    ]
    show(
        f"A train step, {options.runs} runs of {options.every} (sparsity {_SPARSITY})",
        ("network", "step", "median ms", "to dense", "bar"),
        rows,
        "\n".join([__doc__ or "", *notes]),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
