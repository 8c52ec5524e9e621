"""K-starts, dissipating gradients and both (Haroon, 2022), on handwritten digits.

Only the paper's abstract was available to us, so three choices are ours: the fitness by
which K-starts chooses, whether its masks share one training, and whether dissipating
removes weights to a given sparsity or by a threshold. "random" uses one random mask
from the start, and "random_dropout" a new one in every step.

Run: python -m experiments.run digits_starts
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("digits"),
    model=Model("convnet", widths=(8, 16, 32), convolution="patches"),
    pruning=Pruning(
        methods=(
            "random",
            "random_dropout",
            "magnitude",
            "snip",
            "k_starts",
            "k_starts_independent",
            "dissipating",
            "k_starts_dissipating",
        ),
        sparsities=(0.5, 0.8, 0.9, 0.95),
        ablated=("k_starts", "dissipating"),
        check_sparsity=0.8,
        every=10,
    ),
    epochs=15,
    learning_rate=0.2,
)
