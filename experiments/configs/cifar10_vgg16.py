"""VGG-16 on CIFAR-10 at 90, 96.8 and 99 %, beside Synaptic-Flow's published figures.

Tanaka et al. (2020), their schedule and batch; DRIVE is added. 5,000 training images
are held out, ReLU comes before BatchNorm, and the dense layer is one. For an
accelerator: not run.

Run: python -m experiments.run cifar10_vgg16 --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.configs import cifar10_resnet18
from experiments.models import PUBLISHED

config = dataclasses.replace(cifar10_resnet18.config, model=PUBLISHED["vgg16"])
