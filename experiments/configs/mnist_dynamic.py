"""Masks that move, and sparse forward passes, on MNIST with LeNet-300-100.

Run: python -m experiments.run mnist_dynamic --data.dir=<TFDS folder>
"""

from experiments.config import Config, Data, Model, Pruning
from experiments.configs.digits_dynamic import METHODS

config = Config(
    data=Data("mnist", validation_size=5_000),
    model=Model("lenet", widths=(300, 100)),
    pruning=Pruning(methods=METHODS, sparsities=(0.9, 0.98), every=50),
    over_seeds="vmap",
    epochs=5,
    batch_size=512,
)
