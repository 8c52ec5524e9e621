"""LeNet-300-100 on MNIST, as in Lee et al. (SNIP, 2019).

Run: python -m experiments.run mnist_lenet300 --data.dir=<TFDS folder>

Not run in full. With --epochs=3 --pruning.sparsities 0.98, test accuracy in %, mean
± deviation over five seeds: dense 97.2 ± 0.2, random 49.2 ± 2.0, magnitude 11.3 ± 0.0
(layer collapse), snip 92.0 ± 0.3, grasp 91.3 ± 0.6, synflow 92.9 ± 0.2, biased_loss
91.6 ± 0.5, gradient_preservation 90.2 ± 0.6, gradual 91.4 ± 0.3.
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
