"""Filters removed while training, on CIFAR-10: the twin of digits_structured.

ResNet-20 at the size of twenty minutes on two CPU cores: 8 channels in its first stage,
2,000 images, 6 epochs, one seed, one round, two fractions. The learning rate is that of
cifar10_gradient_flow. So few channels gain no time: on CPUs a convolution of XLA takes
as long for 4 of them as for 16. At 16 channels in the first stage the runs took 26
minutes; `benchmarks.shrink` has networks of full size.

Run: python -m experiments.run cifar10_structured --data.dir=<TFDS folder>
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
    measures=(
        "magnitude",
        "loss_preservation",
        "biased_loss",
        "grasp",
        "gradient_preservation",
    ),
    fractions=(0.5, 0.75),
    rounds=(1,),
    examples_per_class=10,
    seeds=1,
    epochs=6,
    batch_size=32,
    learning_rate=0.2,
)
