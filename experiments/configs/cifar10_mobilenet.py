"""MobileNet-V1 on CIFAR-10, 75 % of the filters removed in 1, 5 and 25 rounds.

Lubana & Dick (2021) at their size, but for 5,000 training images that are held out to
validate; a depthwise channel goes with the filter that feeds it, and counts once. For
an accelerator: not run.

Run: python -m experiments.run cifar10_mobilenet --data.dir=<TFDS folder>
"""

from experiments.config import Data, Rounds
from experiments.models import PUBLISHED

config = Rounds(
    data=Data("cifar10", validation_size=5_000, augment=True),
    model=PUBLISHED["mobilenet_v1"],
    fractions=(0.75,),
    rounds=(1, 5, 25),
    examples_per_class=256,
    epochs=160,
    batch_size=128,
)
