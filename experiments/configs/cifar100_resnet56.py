"""ResNet-56 on CIFAR-100, 60 % of the filters removed in 1, 5 and 25 rounds.

As cifar10_resnet56. For an accelerator: not run.

Run: python -m experiments.run cifar100_resnet56 --data.dir=<TFDS folder>
"""

from experiments.config import Data, Rounds
from experiments.models import PUBLISHED

config = Rounds(
    data=Data("cifar100", validation_size=5_000, augment=True),
    model=PUBLISHED["resnet56"],
    fractions=(0.6,),
    rounds=(1, 5, 25),
    examples_per_class=25,
    epochs=160,
    batch_size=128,
)
