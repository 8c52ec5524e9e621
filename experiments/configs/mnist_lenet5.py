"""LeNet-5 on MNIST: iterative pruning, DRIVE, and K-starts with dissipating gradients.

The network has no normalisation. When dense it does not learn at a rate of 0.1, and one
seed of three not at 0.05, by the images that it is validated on; hence 0.02.

Run: python -m experiments.run mnist_lenet5 --data.dir=<TFDS folder>
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("mnist", validation_size=5_000),
    model=Model("lenet5", widths=(20, 50, 500), convolution="patches"),
    pruning=Pruning(
        methods=("snip", "synflow", "drive", "imp", "k_starts_dissipating"),
        sparsities=(0.9, 0.98),
        every=50,
    ),
    seeds=3,
    epochs=2,
    batch_size=512,
    learning_rate=0.02,
)
