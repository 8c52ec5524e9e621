"""ResNet-20 on CIFAR-10 (He et al., 2016), 0.27 million parameters.

Run: python -m experiments.run cifar10_resnet20 --data.dir=<TFDS folder>

Not run in full. To see it learn on a CPU, add --model.convolution=patches
--over-seeds=map --seeds=1 --epochs=2 --data.train-size=2560 --data.validation-size=500
--data.test-size=500 --pruning.methods snip --pruning.sparsities 0.9: dense 31.8 %,
SNIP 23.6 %.
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("cifar10", validation_size=5_000, augment=True),
    model=Model("resnet", widths=(16, 32, 64)),
    pruning=Pruning(every=100),
    over_seeds="vmap",
    epochs=160,
    batch_size=128,
    weight_decay=1e-4,
)
