"""ResNet-18 on CIFAR-10 at 90, 96.8 and 99 %, to compare with Synaptic-Flow.

The schedule and the batch of Tanaka et al. (2020), with DRIVE added and 5,000 training
images held out. It needs an accelerator and has not been run.

Run: python -m experiments.run cifar10_resnet18 --data.dir=<TFDS folder>
"""

from experiments.config import Config, Data, Pruning
from experiments.models import PUBLISHED

config = Config(
    data=Data("cifar10", validation_size=5_000, augment=True),
    model=PUBLISHED["resnet18"],
    pruning=Pruning(
        methods=("random", "magnitude", "snip", "synflow", "drive"),
        sparsities=(0.9, 0.968, 0.99),
        warmup=3,
    ),
    seeds=3,
    epochs=160,
    drops=(60, 120),
    batch_size=128,
    weight_decay=1e-4,
)
