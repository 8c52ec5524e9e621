"""The methods compared: each one finds a mask before training, or as it goes."""

import jaxprune as jp
from experiments.pruners import _before, _during, _through
from experiments.pruners._before import drive, freeze
from experiments.pruners._types import Factory, Forward, Pruner, Recipe, Settling

__all__ = [
    "PRUNERS",
    "VARIANTS",
    "Factory",
    "Forward",
    "Pruner",
    "Recipe",
    "Settling",
    "freeze",
]

PRUNERS: dict[str, Factory] = {
    "dense": _before.dense,
    "random": _before.one_shot(lambda frozen: jp.random(frozen.key)),
    "magnitude": _before.one_shot(lambda frozen: jp.magnitude),
    "snip": _before.one_shot(lambda frozen: jp.snip(frozen.loss)),
    "grasp": _before.one_shot(_before.grasp),
    "synflow": _before.synflow,
    "biased_loss": _before.one_shot(lambda frozen: jp.biased_loss(frozen.loss)),
    "gradient_preservation": _before.one_shot(
        lambda frozen: jp.gradient_preservation(frozen.loss)
    ),
    "prospr": _before.one_shot(_before.prospr),
    "iterative_snip": _before.iterative(
        lambda frozen: jp.snip(frozen.loss), whole=True
    ),
    "force": _before.compiled(_before.force),
    "trained_magnitude": _before.one_shot(lambda frozen: jp.magnitude, trained=True),
    "lamp": _before.one_shot(
        lambda frozen: lambda params, *_: jp.lamp(jp.magnitude(params)), trained=True
    ),
    "blocks": _before.compiled(_before.blocks, trained=True),
    "earlycrop": _before.earlycrop,
    "epi": _before.epi,
    "drive": drive(),
    "static": _before.static,
    "eoi": _before.eoi,
    "gradual": _during.gradual,
    "k_starts": _during.k_starts(),
    "dissipating": _during.dissipating(),
    "k_starts_dissipating": _during.k_starts_dissipating,
    "set": _during.dynamic(
        lambda tx, key, options: jp.set_training(tx, None, key=key, **options)
    ),
    "rigl": _during.dynamic(lambda tx, key, options: jp.rigl(tx, None, **options)),
    "granet": _during.granet,
    "ac_dc": _during.ac_dc,
    "gradual_n_m": _during.gradual_n_m,
    "ste": _through.STE,
    "sr_ste": _through.SR_STE,
    "top_kast": _through.TOP_KAST,
    "random_dropout": _through.RANDOM_DROPOUT,
}
"""All but "imp" and "k_starts_independent", which train networks to find a mask."""

VARIANTS: dict[str, dict[str, Factory]] = {
    "drive": {
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
    },
    "k_starts": {
        "by magnitude": _during.k_starts(fitness="magnitude"),
        "by gradient": _during.k_starts(fitness="gradient"),
    },
    "dissipating": {
        "moved by a tenth": _during.dissipating(threshold=0.1),
        "moved by a half": _during.dissipating(threshold=0.5),
    },
}
"""What is a choice of ours in methods whose papers leave it open, taken otherwise."""
