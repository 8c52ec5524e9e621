"""LeNet-5 on MNIST: iterative pruning, DRIVE, and K-starts with dissipating gradients.

The widths are from LeCun et al. (1998); Caffe's (20, 50, 500) take three times as long.
The batch and the learning rate are Caffe's. Without normalization the network trains
poorly at higher rates: in batches of 512, dense networks reached 11 to 94 % validation
accuracy at 0.1, 81 to 94 % at 0.05 and 83 to 96 % at 0.02.

Run: python -m experiments.run mnist_lenet5 --data.dir=<TFDS folder>
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("mnist", validation_size=5_000),
    model=Model("lenet5", widths=(6, 16, 120, 84), convolution="patches"),
    pruning=Pruning(
        methods=("snip", "synflow", "drive", "imp", "k_starts_dissipating"),
        sparsities=(0.9, 0.98),
        every=400,
    ),
    seeds=3,
    epochs=2,
    batch_size=64,
    learning_rate=0.01,
)
