"""WRN-22-2 on CIFAR-10: static, RigL and gradual, to compare with RigL's.

The figures are in the RigL authors' reply (google-research/rigl, issue 8). The learning
rate follows a cosine here and falls in steps in their code, and 5,000 training images
are held out. It needs an accelerator and has not been run.

Run: python -m experiments.run cifar10_wrn22 --data.dir=<TFDS folder>
"""

from experiments.config import Config, Data, Pruning
from experiments.models import PUBLISHED

config = Config(
    data=Data("cifar10", validation_size=5_000, augment=True),
    model=PUBLISHED["wrn22_2"],
    pruning=Pruning(
        methods=("static", "rigl", "gradual"),
        sparsities=(0.5, 0.8, 0.9, 0.95),
        every=100,
        until=0.75,
    ),
    seeds=3,
    epochs=250,
    batch_size=128,
)
