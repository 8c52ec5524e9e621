"""The gradient-flow view of pruning on CIFAR-10: a ResNet-20 of half the width.

Lubana & Dick (2021) at the size of an hour on two CPU cores: 2,000 images for 50,000, 8
epochs for 160, batches of 32 for 128, and shortcuts without parameters. The learning
rate was chosen on the validation images, of the dense network, from 0.2 and 0.6.

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
