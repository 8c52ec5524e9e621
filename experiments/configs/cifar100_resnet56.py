"""ResNet-56 on CIFAR-100, 60 % of the filters removed in 1, 5 and 25 rounds.

As cifar10_resnet56. It needs an accelerator and has not been run.

Run: python -m experiments.run cifar100_resnet56 --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.config import Data
from experiments.configs import cifar10_resnet56

config = dataclasses.replace(
    cifar10_resnet56.config,
    data=Data("cifar100", validation_size=5_000, augment=True),
    examples_per_class=25,
)
