"""Moving masks and sparse forward passes on MNIST with LeNet-300-100.

AC/DC does not reset momentum. It was measured later than the rest.

Run: python -m experiments.run mnist_dynamic --data.dir=<TFDS folder>
"""

import dataclasses

from experiments.configs import digits_dynamic, mnist_lenet300

config = dataclasses.replace(
    mnist_lenet300.config,
    pruning=dataclasses.replace(digits_dynamic.config.pruning, every=50),
    epochs=5,
)
