"""ResNet-20 on CIFAR-10 (He et al., 2016, Section 4.2), 0.27 million parameters.

He et al. report 91.25 % dense, in Table 6.

Run: python -m experiments.run cifar10_resnet20 --data.dir=<TFDS folder>
On a CPU, to see it learn: --model.convolution=patches --over-seeds=map --seeds=1
--epochs=2 --data.train-size=2560 --pruning.methods snip --pruning.sparsities 0.9
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
