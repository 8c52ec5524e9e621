"""LeNet-300-100 on MNIST, the test bed of Lee et al. (SNIP, 2019, Section 5.1).

Run: python -m experiments.run mnist_lenet300 --data.dir=<TFDS folder>
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("mnist", validation_size=5_000),
    model=Model("lenet", widths=(300, 100)),
    pruning=Pruning(every=100),
    over_seeds="vmap",
    epochs=20,
    batch_size=512,
)
