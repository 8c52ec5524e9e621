"""Pruning before training or early in it, on scikit-learn's handwritten digits.

Three groups of methods: a random mask and sparse orthogonal weights; relatives of SNIP
(in rounds, in rounds that can restore weights, through steps of training); and masks
found after dense epochs, a fixed number of them or until a trigger fires. Blocks of 4x4
weights divide only two of the four layers, so fewer weights are removed.

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
