"""Where things lie: a mesh of devices, and one rule for all arrays."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.config import Parallel

COPIES, PARTS = "copies", "parts"


def mesh_of(parallel: Parallel, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ``[copies, parts]``: a parameter is split over the parts, then copied.

    Args:
      parallel: ``fsdp`` is the number of parts; 1 is data-parallel training, -1 fully
        sharded.
      devices: those to use; None is all, of all processes.

    Raises:
      ValueError: if the devices cannot be cut into so many parts.
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
    """Where an array of training state lies, by its shape alone.

    A matrix or kernel is cut along its longest axis that the parts divide; vectors and
    scalars are copied. So a mask, a momentum or a score lies where its parameter does.
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
    """Images: the axis of the batch is cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, (COPIES, PARTS)))
