"""A mesh of devices, where arrays are on it, and batches for it."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.config import Parallel
from experiments.data import Dataset, Split

COPIES, PARTS = "copies", "parts"


def mesh_of(parallel: Parallel, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ``[copies, parts]``; parameters are split over ``parallel.fsdp`` parts.

    One part is data-parallel training, and -1 uses all devices. By default the mesh
    spans the devices of all processes.
    """
    devices = jax.devices() if devices is None else devices
    parts = len(devices) if parallel.fsdp == -1 else parallel.fsdp
    if parts < 1 or len(devices) % parts:
        raise ValueError(
            f"fsdp is {parallel.fsdp}, but there are {len(devices)} devices: pass a "
            "number that divides them, or -1 for all."
        )
    shape = (len(devices) // parts, parts)
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (COPIES, PARTS), axis_types, devices=tuple(devices))


def split(mesh: Mesh, leaf: Any) -> NamedSharding:
    """The sharding of an array of training state, from its shape alone.

    A matrix or kernel is split along its longest axis that the parts divide; vectors
    and scalars are copied. So a mask or a momentum has its parameter's sharding.
    """
    parts = mesh.shape[PARTS]
    lengths = [n if n % parts == 0 else 0 for n in leaf.shape]
    spec: list[str | None] = [None] * len(leaf.shape)
    if len(lengths) >= 2 and max(lengths):
        spec[lengths.index(max(lengths))] = PARTS
    return NamedSharding(mesh, PartitionSpec(*spec))


def copied(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh, axis: int) -> NamedSharding:
    """Images: the axis of the batch is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, (COPIES, PARTS)))


class Feed:
    """The training batches of a run, as global arrays ``[microbatches, rows, ...]``.

    The order of the images depends on the seed and the epoch alone, so any number of
    processes sees the same batches, and the number of a step is a position in the data.
    """

    def __init__(
        self, images: Split, mesh: Mesh, batch_size: int, microbatches: int, seed: int
    ):
        if batch_size % (microbatches * mesh.size):
            raise ValueError(
                f"batch_size is {batch_size}: {microbatches} microbatches on "
                f"{mesh.size} devices do not divide it."
            )
        if batch_size > len(images.labels):
            raise ValueError(
                f"batch_size is {batch_size}, but there are only "
                f"{len(images.labels)} images to train on."
            )
        self._images, self._seed = images, seed
        self._sharding = spread(mesh, 1)
        self._shape = (microbatches, batch_size // microbatches)
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))
        self.steps = len(images.labels) // batch_size  # An epoch.

    def __call__(self, step: int) -> Split:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, batch = divmod(step, self.steps)
        if self._order[0] != epoch:
            order = np.random.default_rng((self._seed, epoch))
            self._order = epoch, order.permutation(len(self._images.labels))
        size = self._shape[0] * self._shape[1]
        rows = self._order[1][batch * size : (batch + 1) * size].reshape(self._shape)
        return place(self._images, rows, self._sharding)


def place(images: Split, rows: np.ndarray, sharding: NamedSharding) -> Split:
    """Puts the images at ``rows`` on the devices; each process brings its own.

    Rows of -1 become blank images with the label -1.
    """
    held = np.zeros(rows.shape, bool)  # By the devices of this process.
    for part in sharding.addressable_devices_indices_map(rows.shape).values():
        held[part] = True
    mine = rows[..., held.reshape(-1, rows.shape[-1])[0]]

    def put(array: np.ndarray, blank: int) -> jax.Array:
        found = array[mine]
        found[mine < 0] = blank
        shape = (*rows.shape, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, found, shape)

    return Split(put(np.asarray(images.images), 0), put(np.asarray(images.labels), -1))


def held_out(dataset: Dataset, mesh: Mesh, size: int) -> Iterator[tuple[str, Split]]:
    """Batches of the validation and the test images, the last ones padded."""
    size = -(-size // mesh.size) * mesh.size
    for name in ("validation", "test"):
        images = getattr(dataset, name)
        for first in range(0, len(images.labels), size):
            rows = np.arange(first, first + size)
            rows = np.where(rows < len(images.labels), rows, -1)
            yield name, place(images, rows, spread(mesh, 0))
