"""The gradient-flow view of pruning on CIFAR-10: a ResNet-20 of a quarter of the width.

Lubana & Dick (2021) at the size of an hour on two CPU cores: 4,000 images, width 4 for
16, 12 epochs for 160.

Run: python -m experiments.run cifar10_gradient_flow --data.dir=<TFDS folder>
"""

from experiments.config import Data, Model, Rounds

config = Rounds(
    data=Data(
        "cifar10",
        train_size=4_000,
        validation_size=1_000,
        test_size=2_000,
        augment=True,
    ),
    model=Model("resnet", widths=(8, 16, 32)),
    fractions=(0.6,),
    examples_per_class=10,
    epochs=10,
    batch_size=64,
    learning_rate=0.5,
)
