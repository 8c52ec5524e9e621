"""Filters removed in rounds during training, on scikit-learn's handwritten digits.

Run: python -m experiments.run digits_structured
"""

from experiments.config import Data, Model, Rounds

config = Rounds(
    data=Data("digits"),
    model=Model("convnet", widths=(16, 32, 64), convolution="patches"),
    epochs=20,
    batch_size=64,
    learning_rate=0.5,
)
