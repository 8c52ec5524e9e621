"""The methods compared, one row each in `METHODS`; everything else derives from it.

A method is a function ``(setup, sparsity) -> Start``: it says what the last training
starts from, and how that training goes. To add one, write the function and its row.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax

import jaxprune as jp
from experiments.methods._after import (
    after,
    magnitude_after,
    magnitude_n_m,
    sparse_gpt,
    sparse_gpt_n_m,
    wanda,
    wanda_n_m,
)
from experiments.methods._before import (
    blocks,
    chosen,
    drive,
    earlycrop,
    epi,
    fisher,
    force,
    gradient_preservation,
    grasp,
    in_rounds,
    magnitude,
    masked,
    orthogonal,
    prospr,
    ranked,
    sparse_mup,
    static,
    synflow,
)
from experiments.methods._during import (
    ac_dc,
    dissipating,
    drawn,
    during,
    gradual,
    gradual_n_m,
    granet,
    k_starts,
    k_starts_dissipating,
    largest,
    rigl,
    set_training,
    two_of_four,
)
from experiments.methods._several import imp, k_starts_independent
from experiments.methods._start import Choose as Choose
from experiments.methods._start import Forward as Forward
from experiments.methods._start import Recipe as Recipe
from experiments.methods._start import Setup as Setup
from experiments.methods._start import Start as Start
from experiments.methods._start import StartFn as StartFn
from experiments.methods._start import stacked as stacked
from experiments.methods._start import unstacked as unstacked

if TYPE_CHECKING:
    from experiments.comparison import Lab


# Sanity checks: a method's start, spoiled in one respect.


def shuffled(lab: Lab, method: StartFn, sparsity: float) -> Start:
    """Shuffles the mask within layers."""
    start = method(lab, sparsity)
    return start._replace(mask=jax.vmap(jp.shuffle_mask)(lab.keys.masks, start.mask))


def redrawn(lab: Lab, method: StartFn, sparsity: float) -> Start:
    """Redraws the weights, which are then trained from the beginning."""
    start = method(lab, sparsity)
    params, stats = lab.init(lab.keys.masks)
    return start._replace(
        params=params, stats=stats, opt_state=None, first=0, history=()
    )


def inverted(lab: Lab, method: StartFn, sparsity: float) -> Start:
    """Keeps the weights that score lowest."""
    return method(lab.inverted(), sparsity)


CHECKS = {"shuffled": shuffled, "redrawn": redrawn, "inverted": inverted}


# The table.

Needs = Literal[
    "nothing",  # Neither images nor training.
    "data",  # A batch to score.
    "warm-up",  # Dense epochs before.
    "training",  # Prunes while it trains.
    "a trigger",  # Dense epochs until a trigger fires.
    "several trainings",
    "a trained network",
    "layer inputs",  # Of a trained network.
]


class Method(NamedTuple):
    """A row of the table.

    Attributes:
      label: its name in figures.
      source: where it comes from.
      needs: the most that it needs to find its mask.
      start: the method.
      checks: the names of the sanity checks that make sense for it.
      variants: the method with another choice where its source leaves one open, or
        without one of its parts.
      only_at: the one sparsity that it can reach; None is any.
      row: its name in the documentation's table of methods, if another.
    """

    label: str
    source: str
    needs: Needs
    start: StartFn
    checks: tuple[str, ...] = ()
    variants: Mapping[str, StartFn] = {}
    only_at: float | None = None
    row: str = ""


_ALL = tuple(CHECKS)

# fmt: off
METHODS: dict[str, Method] = {
    "random": Method(
        "random", "", "nothing", chosen(ranked(lambda view: jp.random(view.key)))),
    "magnitude": Method("magnitude", "", "nothing", chosen(magnitude), _ALL),
    "snip": Method(
        "SNIP", "Lee et al., 2019", "data",
        chosen(ranked(lambda view: jp.snip(view.loss))), _ALL),
    "grasp": Method(
        "GraSP", "Wang et al., 2020", "data", chosen(ranked(grasp)), _ALL),
    "synflow": Method(
        "SynFlow", "Tanaka et al., 2020", "nothing", chosen(synflow), _ALL),
    "biased_loss": Method(
        "magnitude-biased loss", "Lubana & Dick, 2021", "data",
        chosen(ranked(lambda view: jp.biased_loss(view.loss))), _ALL),
    "gradient_preservation": Method(
        "gradient preservation", "Lubana & Dick, 2021", "data",
        chosen(gradient_preservation), _ALL),
    "gradual": Method(
        "gradual magnitude", "Zhu & Gupta, 2017", "training", during(gradual)),
    "trained_magnitude": Method(
        "trained magnitude", "", "warm-up", chosen(magnitude, warm_up=True), _ALL),
    "lamp": Method(
        "LAMP", "Lee et al., 2021", "warm-up",
        chosen(ranked(lambda view: lambda params, *_: jp.lamp(jp.magnitude(params))),
               warm_up=True), _ALL),
    "blocks": Method(
        "blocks", "", "warm-up", chosen(masked(blocks), warm_up=True), _ALL,
        row="block_mask"),
    "earlycrop": Method(
        "EarlyCroP", "Rachwan et al., 2022", "a trigger", earlycrop, _ALL,
        row="earlycrop_trigger"),
    "epi": Method(
        "EPI", "Shen et al., 2022", "a trigger", epi, _ALL, row="epi_trigger"),
    "drive": Method(
        "DRIVE", "Saikumar & Varghese, 2024", "warm-up", drive(), _ALL, variants={
            "|θ|": drive(weights=(1, 0, 0)),
            "|θg|": drive(weights=(0, 1, 0)),
            "|g|": drive(weights=(0, 0, 1)),
            "|θ| + |θg|": drive(weights=(1, 1, 0)),
            "|θ| + |g|": drive(weights=(1, 0, 1)),
            "|θg| + |g|": drive(weights=(0, 1, 1)),
            "means": drive(normalize="mean"),
            "ranks": drive(normalize="rank"),
            "none": drive(normalize="none"),
            "product": drive(combine="product"),
        }),
    "imp": Method(  # Its scores are its training: there is nothing to invert.
        "iterative, rewound (IMP)", "Frankle et al., 2020", "several trainings", imp,
        ("shuffled", "redrawn"), row="rewinding"),
    "k_starts": Method(
        "K-starts", "Haroon, 2022", "training", k_starts(), variants={
            "by magnitude": k_starts(fitness="magnitude"),
            "by gradient": k_starts(fitness="gradient"),
        }),
    "dissipating": Method(
        "dissipating", "Haroon, 2022", "training", dissipating(), variants={
            "moved by a tenth": dissipating(threshold=0.1),
            "moved by a half": dissipating(threshold=0.5),
        }),
    "k_starts_dissipating": Method(
        "K-starts + dissipating", "Haroon, 2022", "training",
        during(k_starts_dissipating)),
    "k_starts_independent": Method(
        "K-starts, independent", "Haroon, 2022", "several trainings",
        k_starts_independent),
    "random_dropout": Method(
        "random dropout", "", "training",
        during(forward=Forward(drawn, reached=drawn))),
    "static": Method("static", "Evci et al., 2020", "nothing", static, row="erk"),
    "eoi": Method(
        "EOI", "Esguerra et al., 2023", "nothing", chosen(orthogonal),
        row="exact_orthogonal_init"),
    "set": Method(
        "SET", "Mocanu et al., 2018", "training", during(set_training, start=static),
        row="set_training"),
    "rigl": Method(
        "RigL", "Evci et al., 2020", "training", during(rigl, start=static)),
    "granet": Method("GraNet", "Liu et al., 2021", "training", during(granet)),
    "ac_dc": Method(
        "AC/DC", "Peste et al., 2021", "training", during(ac_dc), row="phases"),
    "ste": Method(
        "STE", "", "training", during(forward=Forward(largest)), row="forward_sparse"),
    "top_kast": Method(
        "Top-KAST", "Jayakumar et al., 2020", "training",
        during(forward=Forward(largest, functools.partial(largest, times=2)))),
    "sr_ste": Method(
        "SR-STE 2:4", "Zhou et al., 2021", "training",
        during(forward=Forward(two_of_four, decay=2e-4)), only_at=0.5, row="n_m_mask"),
    "gradual_n_m": Method(
        "gradual 2:4", "", "training", during(gradual_n_m), only_at=0.5),
    "iterative_snip": Method(
        "iterative SNIP", "de Jorge et al., 2021", "data",
        chosen(in_rounds(lambda view: jp.snip(view.loss))), _ALL,
        row="iterative_mask"),
    "force": Method(
        "FORCE", "de Jorge et al., 2021", "data", chosen(masked(force)), _ALL,
        row="force_mask"),
    "prospr": Method(
        "ProsPr", "Alizadeh et al., 2022", "data", chosen(ranked(prospr)), _ALL),
    "fisher": Method("fisher", "", "data", chosen(ranked(fisher)), _ALL),
    "sparse_mup": Method(
        "sparse µP", "Dey et al., 2024", "nothing", sparse_mup(), variants={
            "initial weights only": sparse_mup(learning_rate=False),
            "learning rates only": sparse_mup(init=False),
            "neither": sparse_mup(init=False, learning_rate=False),
        }),
    "magnitude_after": Method(
        "magnitude, after training", "", "a trained network", after(magnitude_after)),
    "wanda": Method("Wanda", "Sun et al., 2024", "layer inputs", after(wanda)),
    "sparse_gpt": Method(
        "SparseGPT", "Frantar & Alistarh, 2023", "layer inputs", after(sparse_gpt)),
    "magnitude_n_m": Method(
        "magnitude 2:4, after training", "", "a trained network",
        after(magnitude_n_m), only_at=0.5),
    "wanda_n_m": Method(
        "Wanda 2:4", "Sun et al., 2024", "layer inputs", after(wanda_n_m), only_at=0.5),
    "sparse_gpt_n_m": Method(
        "SparseGPT 2:4", "Frantar & Alistarh, 2023", "layer inputs",
        after(sparse_gpt_n_m), only_at=0.5),
}
# fmt: on

AFTER_TRAINING = tuple(
    name
    for name, row in METHODS.items()
    if row.needs in ("a trained network", "layer inputs")
)
"""Methods that prune trained networks and train nothing afterwards."""
