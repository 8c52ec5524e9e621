"""MobileNet-V1 on CIFAR-10, 75 % of the filters removed in 1, 5 and 25 rounds.

As cifar10_vgg13. A depthwise channel is removed with the filter that feeds it, and
counts once. It needs an accelerator and has not been run.

Run: python -m experiments.run cifar10_mobilenet --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.configs import cifar10_vgg13
from experiments.models import PUBLISHED

config = dataclasses.replace(cifar10_vgg13.config, model=PUBLISHED["mobilenet_v1"])
