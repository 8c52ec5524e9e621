"""MobileNet-V1 on CIFAR-10, 75 % of the filters removed in 1, 5 and 25 rounds.

Lubana & Dick (2021) at their size, but for 5,000 training images that are held out to
validate; a depthwise channel goes with the filter that feeds it, and counts once. For
an accelerator: not run.

Run: python -m experiments.run cifar10_mobilenet --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.configs import cifar10_vgg13
from experiments.models import PUBLISHED

config = dataclasses.replace(cifar10_vgg13.config, model=PUBLISHED["mobilenet_v1"])
