"""One network on all devices, on scikit-learn's handwritten digits, as a smoke test.

Run: python -m experiments.run digits_mesh
"""

from experiments.config import Checkpoints, Data, Logging, Model, Scaled

config = Scaled(
    data=Data("digits"),
    model=Model("convnet", widths=(8, 16, 32)),
    checkpoints=Checkpoints(every=20),
    logging=Logging(every=10),
    batch_size=64,
    epochs=15,
    learning_rate=0.2,
)
