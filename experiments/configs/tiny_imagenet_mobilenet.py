"""MobileNet-V1 on Tiny-ImageNet, 75 % of the filters removed in 1, 5 and 25 rounds.

As cifar10_mobilenet. The labeled validation images are the test set. TFDS has no
builder for this data set, so you prepare it yourself. It needs an accelerator and has
not been run.

Run: python -m experiments.run tiny_imagenet_mobilenet --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.config import Data
from experiments.configs import cifar10_mobilenet

DATA = Data(
    "tiny_imagenet", validation_size=10_000, test_split="validation", augment=True
)
config = dataclasses.replace(cifar10_mobilenet.config, data=DATA, examples_per_class=12)
