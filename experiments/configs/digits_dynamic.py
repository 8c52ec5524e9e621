"""Masks that move, on scikit-learn's handwritten digits: RigL, SET, GraNet, gradual.

Run: python -m experiments.run digits_dynamic
"""

from experiments.config import Config, Data, Model, Pruning

config = Config(
    data=Data("digits"),
    model=Model("convnet", widths=(8, 16, 32), convolution="patches"),
    pruning=Pruning(
        methods=("static", "set", "rigl", "granet", "gradual"),
        sparsities=(0.9, 0.98),
        every=10,
    ),
    epochs=15,
    learning_rate=0.2,
)
