"""ResNet-56 on CIFAR-10, 60 % of the filters removed in 1, 5 and 25 rounds.

As cifar10_vgg13. Channels that the residual stream adds form one group here, and their
code prunes each of them separately. It needs an accelerator and has not been run.

Run: python -m experiments.run cifar10_resnet56 --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.configs import cifar10_vgg13
from experiments.models import PUBLISHED

config = dataclasses.replace(
    cifar10_vgg13.config, model=PUBLISHED["resnet56"], fractions=(0.6,)
)
