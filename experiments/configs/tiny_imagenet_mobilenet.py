"""MobileNet-V1 on Tiny-ImageNet, 75 % of the filters removed in 1, 5 and 25 rounds.

As cifar10_mobilenet; its labelled validation images are the test set. TFDS has no
builder of this data set, so you prepare it yourself. For an accelerator: not run.

Run: python -m experiments.run tiny_imagenet_mobilenet --data.dir=<TFDS folder>
"""

from experiments.config import Data, Rounds
from experiments.models import PUBLISHED

config = Rounds(
    data=Data(
        "tiny_imagenet",
        validation_size=10_000,
        test_split="validation",
        augment=True,
    ),
    model=PUBLISHED["mobilenet_v1"],
    fractions=(0.75,),
    rounds=(1, 5, 25),
    examples_per_class=12,
    epochs=160,
    batch_size=128,
)
