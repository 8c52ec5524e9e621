"""DRIVE and its rivals on MNIST, LeNet-300-100 (Saikumar & Varghese, 2024).

The paper uses larger data sets. This tests its claim at a size that takes minutes on
two CPU cores: it compares accuracies, and the time to prune with that of iterative
magnitude pruning with rewinding. Other methods that claim to be cheap run too,
including both of Haroon's (2022). Sanity checks shuffle the mask within layers, redraw
the weights and invert the scores; ablations run DRIVE with some of its terms and
normalizations.

Run: python -m experiments.run drive_mnist --data.dir=<TFDS folder>
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("mnist", validation_size=5_000),
    model=Model("lenet", widths=(300, 100)),
    pruning=Pruning(
        methods=(
            "random",
            "magnitude",
            "snip",
            "grasp",
            "synflow",
            "biased_loss",
            "gradient_preservation",
            "trained_magnitude",
            "drive",
            "imp",
            "random_dropout",
            "k_starts",
            "k_starts_independent",
            "dissipating",
            "k_starts_dissipating",
        ),
        sparsities=(0.9, 0.98, 0.99),
        checked=("magnitude", "snip", "synflow", "drive", "imp"),
        ablated=("drive",),
        every=50,
    ),
    over_seeds="vmap",
    epochs=5,
    batch_size=512,
)
