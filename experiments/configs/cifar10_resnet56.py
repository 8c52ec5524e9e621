"""ResNet-56 on CIFAR-10, 60 % of the filters removed in 1, 5 and 25 rounds.

Lubana & Dick (2021) at their size, but for 5,000 training images that are held out to
validate, and the residual stream: channels that are added are one group here, where
their code prunes each on its own. For an accelerator: not run.

Run: python -m experiments.run cifar10_resnet56 --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.configs import cifar10_vgg13
from experiments.models import PUBLISHED

config = dataclasses.replace(
    cifar10_vgg13.config, model=PUBLISHED["resnet56"], fractions=(0.6,)
)
