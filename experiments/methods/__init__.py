"""The methods compared, one row each in `METHODS`; all other lists derive from it.

A method is a function ``(setup, sparsity) -> Start``: it returns what the last training
starts from, and how to train. To add one, write the function and its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax

import jaxprune as jp
from experiments.methods import _after as after
from experiments.methods import _before as before
from experiments.methods import _during as during
from experiments.methods import _several as several
from experiments.methods._start import Choose as Choose
from experiments.methods._start import Recipe as Recipe
from experiments.methods._start import Setup as Setup
from experiments.methods._start import Start as Start
from experiments.methods._start import StartFn as StartFn
from experiments.methods._start import stacked as stacked
from experiments.methods._start import unstacked as unstacked

if TYPE_CHECKING:
    from experiments.lab import Lab


# Sanity checks: a method's start with one thing spoiled.


def shuffled(lab: Lab, method: StartFn, sparsity: float) -> Start:
    """Shuffles the mask within layers."""
    start = method(lab, sparsity)
    return start._replace(mask=jax.vmap(jp.shuffle_mask)(lab.keys.masks, start.mask))


def redrawn(lab: Lab, method: StartFn, sparsity: float) -> Start:
    """Redraws the weights and trains them from the beginning."""
    params, stats = lab.init(lab.keys.masks)
    return method(lab, sparsity)._replace(
        params=params, stats=stats, opt_state=None, first=0, history=()
    )


def inverted(lab: Lab, method: StartFn, sparsity: float) -> Start:
    """Keeps the weights that score lowest."""
    return method(lab.inverted(), sparsity)


CHECKS = {"shuffled": shuffled, "redrawn": redrawn, "inverted": inverted}

Needs = Literal[
    "nothing",  # No images and no training.
    "data",  # A batch to score.
    "warm-up",  # Some dense epochs.
    "training",  # Prunes during training.
    "a trigger",  # Dense epochs until a trigger fires.
    "several trainings",
    "a trained network",
    "layer inputs",  # Of a trained network.
]


class Method(NamedTuple):
    """A row of the table."""

    label: str  # Its name in figures.
    source: str
    needs: Needs
    start: StartFn
    checks: tuple[str, ...] = ()  # Sanity checks that apply to it.
    variants: Mapping[str, StartFn] = {}  # Other readings of the source; ablations.
    only_at: float | None = None  # The only sparsity that it can reach.
    row: str = ""  # Its name in the documentation's table, if different.


_ALL = tuple(CHECKS)
_FRANTAR = "Frantar & Alistarh, 2023"
_HAROON = "Haroon, 2022"
_JORGE = "de Jorge et al., 2021"
_LUBANA = "Lubana & Dick, 2021"

# fmt: off
METHODS: dict[str, Method] = {
    "random": Method("random", "", "nothing", before.random),
    "magnitude": Method(
        "magnitude", "Han et al., 2015", "nothing", before.magnitude, _ALL),
    "snip": Method("SNIP", "Lee et al., 2019", "data", before.snip, _ALL),
    "grasp": Method("GraSP", "Wang et al., 2020", "data", before.grasp, _ALL),
    "synflow": Method(
        "SynFlow", "Tanaka et al., 2020", "nothing", before.synflow, _ALL),
    "biased_loss": Method(
        "magnitude-biased loss", _LUBANA, "data", before.biased_loss, _ALL),
    "gradient_preservation": Method(
        "gradient preservation", _LUBANA, "data", before.gradient_preservation, _ALL),
    "fisher": Method("Fisher", "Theis et al., 2018", "data", before.fisher, _ALL),
    "prospr": Method("ProsPr", "Alizadeh et al., 2022", "data", before.prospr, _ALL),
    "iterative_snip": Method(
        "iterative SNIP", _JORGE, "data", before.iterative_snip, _ALL,
        row="iterative_mask"),
    "force": Method("FORCE", _JORGE, "data", before.force, _ALL, row="force_mask"),
    "static": Method(
        "static", "Evci et al., 2020", "nothing", before.static, row="erk"),
    "eoi": Method(
        "EOI", "Nowak et al., 2024", "nothing", before.orthogonal,
        row="exact_orthogonal_init"),
    "sparse_mup": Method(
        "sparse µP", "Dey et al., 2024", "nothing", before.sparse_mup(), variants={
            "initial weights only": before.sparse_mup(learning_rate=False),
            "learning rates only": before.sparse_mup(init=False),
            "neither": before.sparse_mup(init=False, learning_rate=False),
        }),
    "trained_magnitude": Method(
        "trained magnitude", "", "warm-up", before.trained_magnitude, _ALL),
    "lamp": Method("LAMP", "Lee et al., 2021", "warm-up", before.lamp, _ALL),
    "blocks": Method(
        "blocks", "Narang et al., 2017", "warm-up", before.blocks, _ALL,
        row="block_mask"),
    "drive": Method(
        "DRIVE", "Saikumar & Varghese, 2024", "warm-up", before.drive(), _ALL,
        variants={
            "|θ|": before.drive(weights=(1, 0, 0)),
            "|θg|": before.drive(weights=(0, 1, 0)),
            "|g|": before.drive(weights=(0, 0, 1)),
            "|θ| + |θg|": before.drive(weights=(1, 1, 0)),
            "|θ| + |g|": before.drive(weights=(1, 0, 1)),
            "|θg| + |g|": before.drive(weights=(0, 1, 1)),
            "means": before.drive(normalize="mean"),
            "ranks": before.drive(normalize="rank"),
            "none": before.drive(normalize="none"),
            "product": before.drive(combine="product"),
        }),
    "earlycrop": Method(
        "EarlyCroP", "Rachwan et al., 2022", "a trigger", before.earlycrop, _ALL,
        row="earlycrop_trigger"),
    "epi": Method(
        "EPI", "Shen et al., 2022", "a trigger", before.epi, _ALL, row="epi_trigger"),
    "imp": Method(
        "iterative, rewound (IMP)", "Frankle & Carbin, 2019", "several trainings",
        several.imp, ("shuffled", "redrawn"), row="rewinding"),
    "k_starts_independent": Method(
        "K-starts, independent", _HAROON, "several trainings",
        several.k_starts_independent),
    "k_starts": Method(
        "K-starts", _HAROON, "training", during.k_starts(), variants={
            "by magnitude": during.k_starts(fitness="magnitude"),
            "by gradient": during.k_starts(fitness="gradient"),
        }),
    "dissipating": Method(
        "dissipating", _HAROON, "training", during.dissipating(), variants={
            "moved by a tenth": during.dissipating(threshold=0.1),
            "moved by a half": during.dissipating(threshold=0.5),
        }),
    "k_starts_dissipating": Method(
        "K-starts + dissipating", _HAROON, "training", during.k_starts_dissipating),
    "gradual": Method(
        "gradual magnitude", "Zhu & Gupta, 2017", "training", during.gradual),
    "gradual_n_m": Method(
        "gradual 2:4", "Kao et al., 2022", "training", during.gradual_n_m, only_at=0.5),
    "set": Method(
        "SET", "Mocanu et al., 2018", "training", during.set_training,
        row="set_training"),
    "rigl": Method("RigL", "Evci et al., 2020", "training", during.rigl),
    "granet": Method("GraNet", "Liu et al., 2021", "training", during.granet),
    "ac_dc": Method(
        "AC/DC", "Peste et al., 2021", "training", during.ac_dc, row="phases"),
    "ste": Method("STE", "", "training", during.ste, row="forward_sparse"),
    "sr_ste": Method(
        "SR-STE 2:4", "Zhou et al., 2021", "training", during.sr_ste, only_at=0.5,
        row="n_m_mask"),
    "top_kast": Method(
        "Top-KAST", "Jayakumar et al., 2020", "training", during.top_kast),
    "random_dropout": Method("random dropout", "", "training", during.random_dropout),
    "magnitude_after": Method(
        "magnitude, after training", "Han et al., 2015", "a trained network",
        after.magnitude),
    "wanda": Method("Wanda", "Sun et al., 2024", "layer inputs", after.wanda),
    "sparse_gpt": Method("SparseGPT", _FRANTAR, "layer inputs", after.sparse_gpt()),
    "magnitude_n_m": Method(
        "magnitude 2:4, after training", "", "a trained network",
        after.magnitude_n_m, only_at=0.5),
    "wanda_n_m": Method(
        "Wanda 2:4", "Sun et al., 2024", "layer inputs", after.wanda_n_m, only_at=0.5),
    "sparse_gpt_n_m": Method(
        "SparseGPT 2:4", _FRANTAR, "layer inputs", after.sparse_gpt(n_m=(2, 4)),
        only_at=0.5),
}
# fmt: on

AFTER_TRAINING = tuple(
    name
    for name, row in METHODS.items()
    if row.needs in ("a trained network", "layer inputs")
)
"""Methods that prune trained networks and train nothing afterwards."""
