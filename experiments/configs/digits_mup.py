"""Sparse µP: hyper-parameters of the dense network at every density, on digits.

Random masks in the two hidden matrices of a multilayer perceptron, which has no
normalisation that would hide the scale of its weights. The first and the last layer
stay dense, so that of all weights 66, 79 and 85 % go: "neither", the same masks without
multipliers, is what to compare with. "static" masks all layers, as ERK says.

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
