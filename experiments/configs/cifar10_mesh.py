"""One ResNet-56 on CIFAR-10 on all devices, SNIP at 90 %, in bfloat16.

The network and the schedule of He et al. (2016): 182 epochs, and the learning rate
falls to a tenth after 91 and 136. Not run yet.

Run: python -m experiments.run cifar10_mesh --data.dir=<TFDS folder>
"""

from experiments.config import Data, Parallel, Scaled
from experiments.models import PUBLISHED

config = Scaled(
    data=Data("cifar10", validation_size=5000, augment=True),
    model=PUBLISHED["resnet56"],
    method="snip",
    sparsity=0.9,
    parallel=Parallel(compute="bfloat16"),
    batch_size=128,
    epochs=182,
    learning_rate=0.1,
    drops=(91, 136),
    weight_decay=1e-4,
)
