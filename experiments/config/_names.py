"""The names that options choose from."""

from typing import Literal

Method = Literal[
    "random",
    "magnitude",
    "snip",
    "grasp",
    "synflow",
    "biased_loss",
    "gradient_preservation",
    "gradual",
    "trained_magnitude",
    "lamp",
    "blocks",
    "earlycrop",
    "epi",
    "drive",
    "imp",
    "k_starts",
    "dissipating",
    "k_starts_dissipating",
    "k_starts_independent",
    "random_dropout",
    "static",
    "eoi",
    "set",
    "rigl",
    "granet",
    "ac_dc",
    "ste",
    "top_kast",
    "sr_ste",
    "gradual_n_m",
    "iterative_snip",
    "force",
    "prospr",
    "fisher",
    "sparse_mup",
    "magnitude_after",
    "wanda",
    "sparse_gpt",
    "magnitude_n_m",
    "wanda_n_m",
    "sparse_gpt_n_m",
]

POST_TRAINING: tuple[Method, ...] = (
    "magnitude_after",
    "wanda",
    "sparse_gpt",
    "magnitude_n_m",
    "wanda_n_m",
    "sparse_gpt_n_m",
)
"""These prune trained networks, and train nothing after it."""

TWO_OF_FOUR: tuple[Method, ...] = ("sr_ste", "gradual_n_m", *POST_TRAINING[3:])
"""These remove half of the weights, whatever the sparsities asked for."""

Checked = Literal[
    "magnitude",
    "snip",
    "grasp",
    "synflow",
    "biased_loss",
    "gradient_preservation",
    "trained_magnitude",
    "lamp",
    "blocks",
    "earlycrop",
    "epi",
    "drive",
    "imp",
    "iterative_snip",
    "force",
    "prospr",
    "fisher",
]
"""Methods that score weights once and for all, so that the checks mean something."""

Check = Literal["shuffled", "redrawn", "inverted"]

Measure = Literal[
    "magnitude",
    "loss_preservation",
    "biased_loss",
    "biased_loss_from_start",
    "biased_loss_tracked",
    "grasp",
    "gradient_preservation",
    "taylor",
    "fisher",
    "l1",
    "bn_scale",
    "random",
    "uniform",
]

Level = Literal["filters", "weights"]
