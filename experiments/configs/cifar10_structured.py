"""Filters removed while training, on CIFAR-10: the twin of digits_structured.

ResNet-20 at the size of twenty minutes on two CPU cores: 8 channels in its first stage,
2,000 images, 6 epochs, one seed, one round, two fractions. The learning rate is that of
cifar10_gradient_flow. So few channels gain no time: on CPUs a convolution of XLA takes
as long for 4 of them as for 16. At 16 channels in the first stage the runs took 26
minutes; `benchmarks.shrink` has networks of full size.

Run: python -m experiments.run cifar10_structured --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.configs import cifar10_gradient_flow

config = dataclasses.replace(
    cifar10_gradient_flow.config,
    measures=(
        "magnitude",
        "loss_preservation",
        "biased_loss",
        "grasp",
        "gradient_preservation",
    ),
    fractions=(0.5, 0.75),
    rounds=(1,),
    seeds=1,
    epochs=6,
)
