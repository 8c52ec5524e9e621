"""Pruning trained networks without retraining, on scikit-learn's handwritten digits.

Magnitude, Wanda and SparseGPT in LeNet-300-100. Each removes the same fraction of every
layer, or keeps 2 of every 4 inputs. Wanda and SparseGPT read 50 training images of each
class, without labels.

Run: python -m experiments.run digits_post_training
"""

from experiments.config import Config, Data, Model, Pruning
from experiments.methods import AFTER_TRAINING

config = Config(
    data=Data("digits"),
    model=Model("lenet", widths=(300, 100)),
    pruning=Pruning(
        methods=AFTER_TRAINING, sparsities=(0.5, 0.75, 0.9), examples_per_class=50
    ),
    over_seeds="vmap",
    epochs=15,
)
