"""Pruned before training or early in it, on scikit-learn's handwritten digits.

A random mask, and sparse orthogonal weights that come with theirs; relatives of SNIP
(in rounds, in rounds that may take weights back, through steps of training); and masks
found after dense epochs, whose number is given or is left to a trigger. Blocks of 4x4
weights fit two of the four layers, so fewer weights go.

Run: python -m experiments.run digits_early
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("digits"),
    model=Model("convnet", widths=(8, 16, 32), convolution="patches"),
    pruning=Pruning(
        methods=(
            "static",
            "eoi",
            "snip",
            "iterative_snip",
            "force",
            "prospr",
            "earlycrop",
            "epi",
            "trained_magnitude",
            "lamp",
            "blocks",
        ),
        sparsities=(0.8, 0.9, 0.95),
        warmup=2,
    ),
    epochs=15,
    learning_rate=0.2,
)
