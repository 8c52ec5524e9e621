"""Moving masks and sparse forward passes on scikit-learn's handwritten digits.

AC/DC prunes all layers at once by one threshold, which empties the first and the last
layer at 98 %. It does not reset momentum, and it was measured later than the rest.

Run: python -m experiments.run digits_dynamic
"""

from experiments.config import Config, Data, Method, Model, Pruning

METHODS: tuple[Method, ...] = (
    "static",
    "set",
    "rigl",
    "granet",
    "gradual",
    "ac_dc",
    "ste",
    "top_kast",
    "sr_ste",
    "gradual_n_m",
)

config = Config(
    data=Data("digits"),
    model=Model("convnet", widths=(8, 16, 32), convolution="patches"),
    pruning=Pruning(methods=METHODS, sparsities=(0.9, 0.98), every=10),
    epochs=15,
    learning_rate=0.2,
)
