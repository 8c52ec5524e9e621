"""VGG-13 on CIFAR-10, 75 % of the filters removed in 1, 5 and 25 rounds.

Lubana & Dick (2021) at their size, except that 5,000 training images are held out. It
needs an accelerator and has not been run.

Run: python -m experiments.run cifar10_vgg13 --data.dir=<TFDS folder>
"""

from experiments.config import Data, Rounds
from experiments.models import PUBLISHED

config = Rounds(
    data=Data("cifar10", validation_size=5_000, augment=True),
    model=PUBLISHED["vgg13"],
    fractions=(0.75,),
    rounds=(1, 5, 25),
    examples_per_class=256,
    epochs=160,
    batch_size=128,
)
