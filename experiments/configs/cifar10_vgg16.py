"""VGG-16 on CIFAR-10 at 90, 96.8 and 99 %, to compare with Synaptic-Flow.

As cifar10_resnet18. ReLU comes before BatchNorm, and there is a single dense layer. It
needs an accelerator and has not been run.

Run: python -m experiments.run cifar10_vgg16 --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.configs import cifar10_resnet18
from experiments.models import PUBLISHED

config = dataclasses.replace(cifar10_resnet18.config, model=PUBLISHED["vgg16"])
