"""The methods compared: each finds a mask before training, as it goes, or after."""

import jaxprune as jp
from experiments.pruners import _after, _before, _during, _through
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
    "fisher": _before.one_shot(_before.fisher),
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
    "sparse_mup": _before.sparse_mup(),
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
    "magnitude_after": _after.after(_after.magnitude),
    "wanda": _after.after(_after.wanda),
    "sparse_gpt": _after.after(_after.sparse_gpt),
    "magnitude_n_m": _after.after(_after.magnitude_n_m),
    "wanda_n_m": _after.after(_after.wanda_n_m),
    "sparse_gpt_n_m": _after.after(_after.sparse_gpt_n_m),
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
    "sparse_mup": {
        "initial weights only": _before.sparse_mup(learning_rate=False),
        "learning rates only": _before.sparse_mup(init=False),
        "neither": _before.sparse_mup(init=False, learning_rate=False),
    },
    "dissipating": {
        "moved by a tenth": _during.dissipating(threshold=0.1),
        "moved by a half": _during.dissipating(threshold=0.5),
    },
}
"""A method with a choice that its paper leaves open taken otherwise, or less a part."""
