"""Batches from host memory: each process brings the rows of its own devices.

The order of the images depends on seed and epoch alone, so any number of processes
sees the same batches, and a step's number says where in the data it stands.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from experiments.data import Dataset, Split
from experiments.scale import _mesh


class Feed:
    """The training batches of a run, as global arrays ``[microbatches, rows, ...]``."""

    def __init__(
        self, split: Split, mesh: Mesh, batch_size: int, microbatches: int, seed: int
    ):
        """Checks that a batch can be cut.

        Raises:
          ValueError: if devices and microbatches do not divide it.
        """
        if batch_size % (microbatches * mesh.size):
            raise ValueError(
                f"batch_size is {batch_size}: {microbatches} microbatches on "
                f"{mesh.size} devices do not divide it."
            )
        if batch_size > len(split.labels):
            raise ValueError(
                f"batch_size is {batch_size}, but there are only "
                f"{len(split.labels)} images to train on."
            )
        self._split = split
        self._sharding = _mesh.spread(mesh, 1)
        self._shape = (microbatches, batch_size // microbatches)
        self._seed = seed
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))
        self.steps = len(split.labels) // batch_size
        """Of the optimizer, an epoch."""

    def __call__(self, step: int) -> Split:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, batch = divmod(step, self.steps)
        if self._order[0] != epoch:
            order = np.random.default_rng((self._seed, epoch))
            self._order = epoch, order.permutation(len(self._split.labels))
        size = self._shape[0] * self._shape[1]
        rows = self._order[1][batch * size : (batch + 1) * size].reshape(self._shape)
        return place(self._split, rows, self._sharding)


def place(split: Split, rows: np.ndarray, sharding: NamedSharding) -> Split:
    """Brings the images at ``rows`` to the devices, every process its own.

    Rows of -1 become blank images of the label -1.
    """
    mine = _local(rows, sharding)

    def put(array: np.ndarray, blank: int) -> jax.Array:
        found = array[mine]
        found[mine < 0] = blank
        shape = (*rows.shape, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, found, shape)

    return Split(put(np.asarray(split.images), 0), put(np.asarray(split.labels), -1))


def held_out(dataset: Dataset, mesh: Mesh, size: int) -> Iterator[tuple[str, Split]]:
    """Batches of the validation and the test images, the last ones filled up."""
    size = -(-size // mesh.size) * mesh.size
    for name in ("validation", "test"):
        split = getattr(dataset, name)
        for first in range(0, len(split.labels), size):
            rows = np.arange(first, first + size)
            rows = np.where(rows < len(split.labels), rows, -1)
            yield name, place(split, rows, _mesh.spread(mesh, 0))


def _local(rows: np.ndarray, sharding: NamedSharding) -> np.ndarray:
    """The part of ``rows`` that lies on this process's devices, in their order."""
    places = sharding.addressable_devices_indices_map(rows.shape).values()
    held = np.zeros(rows.shape, bool)
    for place_ in places:
        held[place_] = True
    return rows[..., held.reshape(-1, rows.shape[-1])[0]]
