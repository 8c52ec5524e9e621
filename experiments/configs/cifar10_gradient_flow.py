"""The gradient-flow view of pruning on CIFAR-10: a ResNet-20 of half the width.

Lubana & Dick (2021), reduced to an hour on two CPU cores: 2,000 images instead of
50,000, 8 epochs instead of 160, batches of 32 instead of 128, and shortcuts without
parameters. The learning rate was chosen from 0.2 and 0.6 by the dense network's
validation accuracy.

Run: python -m experiments.run cifar10_gradient_flow --data.dir=<TFDS folder>
"""

from experiments.config import Data, Model, Rounds

config = Rounds(
    data=Data(
        "cifar10",
        train_size=2_000,
        validation_size=1_000,
        test_size=1_000,
        augment=True,
    ),
    model=Model("resnet", widths=(8, 16, 32)),
    fractions=(0.6,),
    examples_per_class=10,
    epochs=8,
    batch_size=32,
    learning_rate=0.2,
)
