"""What a score costs, in units of one jitted jax.grad of the same loss and batch.

Everything is jitted and gives all its results. "all measures" is one
jp.gradient_flow(order=2) and every measure of jp.measures on it, in one program.
SynFlow is scored on one input, as in its paper; the others on the batch. Times are
medians over rounds in which each is computed once, in turn.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

import jaxprune as jp
from benchmarks._measure import Bar, in_turn, ratio, show
from benchmarks._models import Networks, Problem

_MEASURES = (
    jp.measures.magnitude,
    jp.measures.taylor,
    jp.measures.loss_preservation,
    jp.measures.biased_loss,
    jp.measures.grasp,
    jp.measures.gradient_preservation,
    jp.measures.fisher,
    jp.measures.drive,
)
_NETWORKS = Networks(batch_size=256)
_BARS = {"snip": 1.1, "all measures": 3.5}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time, and how often."""

    rounds: int = 15
    """How often each score is computed, in turn with the others."""
    networks: Networks = _NETWORKS
    """The networks and the batch."""


class Row(NamedTuple):
    """One score on one network; `gradients` is its cost in gradients."""

    problem: str
    score: str
    seconds: float
    gradients: float
    bars: tuple[Bar, ...]


def measure(options: Options) -> list[Row]:
    """Times every score on both networks."""
    rows = []
    for problem in options.networks.build():
        scores = _scores(problem)
        for score in scores.values():
            jax.block_until_ready(score())
        times = in_turn(scores, options.rounds)
        for name, spent in times.items():
            gradients = ratio(spent, times["jax.grad"])
            limit = _BARS.get(name)
            bars = () if limit is None else (Bar(gradients, limit),)
            median = float(np.median(spent))
            rows.append(Row(problem.name, name, median, gradients, bars))
    return rows


def _scores(problem: Problem) -> dict[str, Callable[[], Any]]:
    loss, params, batch = problem.loss, problem.params, problem.batch
    flow = jp.gradient_flow(loss, order=2)

    def all_measures(params: Any, *batch: Any) -> list[Any]:
        evaluated = flow(params, *batch)
        return [measure(evaluated) for measure in _MEASURES]

    on_batch = {
        "jax.grad": jax.grad(loss),
        "magnitude": jp.magnitude,
        "random": jp.random(jax.random.key(0)),
        "snip": jp.snip(loss),
        "biased_loss": jp.biased_loss(loss),
        "fisher": jp.fisher(loss),
        "drive": jp.drive(loss),
        "grasp": jp.grasp(loss),
        "gradient_preservation": jp.gradient_preservation(loss),
        "gradient_flow(order=1)": jp.gradient_flow(loss, order=1),
        "gradient_flow(order=2)": flow,
        "all measures": all_measures,
    }
    calls = {name: _call(fn, params, *batch) for name, fn in on_batch.items()}
    return calls | {"synflow": _call(jp.synflow(problem.apply), params, batch[0][:1])}


def _call(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    jitted = jax.jit(fn)
    return lambda: jitted(*args)


def main(options: Options) -> None:
    """Prints the table."""
    notes = [p.description for p in options.networks.build()]
    rows = [
        (row.problem, row.score, row.seconds * 1e3, row.gradients, row.bars)
        for row in measure(options)
    ]
    show(
        "The cost of scores",
        ("network", "score", "median ms", "in gradients", "bar"),
        rows,
        "\n".join([__doc__ or "", *notes]),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
