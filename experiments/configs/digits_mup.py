"""Sparse µP: the hyper-parameters of the dense network at every density, on digits.

Random masks prune the two hidden matrices of a multilayer perceptron. It has no
normalization, which would hide the scale of the weights. The first and the last layer
stay dense, so 66, 79 and 85 % of all weights are removed. "neither" has the same masks
without multipliers, and "static" prunes all layers, with ERK's densities.

Run: python -m experiments.run digits_mup
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("digits"),
    model=Model("lenet", widths=(256, 256, 256)),
    pruning=Pruning(
        methods=("static", "sparse_mup"),
        sparsities=(0.75, 0.9, 0.97),
        ablated=("sparse_mup",),
        check_sparsity=0.97,
    ),
    over_seeds="vmap",
    epochs=10,
    learning_rate=0.05,
)
