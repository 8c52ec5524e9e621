"""Filters removed during training, on CIFAR-10: the same as digits_structured.

A ResNet-20 that runs in twenty minutes on two CPU cores: 8 channels in the first stage,
2,000 images, 6 epochs, one seed, one round, two fractions, and the learning rate of
cifar10_gradient_flow. Removing so few channels saves no time, because XLA's convolution
is as slow with 4 channels as with 16 on CPUs. With 16 channels in the first stage the
runs took 26 minutes; `benchmarks.shrink` has networks of full size.

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
