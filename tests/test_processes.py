"""Several processes on one machine decide as one does, and share checkpoints."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import data, mesh
from tests import processes
from tests.processes import SHARED
from tests.test_scale import _quick  # noqa: F401  The fixture is used.


def start(job, count, devices, folder):
    """Runs a job in ``count`` processes of ``devices`` each; returns its arrays."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = (
        f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    )
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    given = [sys.executable, "-m", "tests.processes", job]
    started = [
        subprocess.Popen(
            [*given, *map(str, (number, count, port, folder))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, words in zip(started, said, strict=True):
        assert process.returncode == 0, words
    with np.load(folder / "found.npz") as archive:
        return list(archive.values())


@pytest.fixture(scope="module")
def alone():
    return jax.tree.leaves(processes.library(jax.devices()[:1]))


def assert_same(found, wanted):
    """Masks bit for bit, numbers to rounding."""
    assert any(x.dtype == bool and not x.all() for x in wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        if a.dtype == bool:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_four_processes_find_the_mask_of_one(alone, tmp_path):
    assert_same(start("library", 4, 1, tmp_path), alone)


def test_two_processes_train_as_one_which_goes_on_from_their_checkpoint(
    alone, tmp_path
):
    found = start("trainer", 2, 2, tmp_path)
    assert_same(found[: len(alone)], alone)
    dataset = data.read(SHARED.data)
    one = mesh.train(SHARED, dataset, tmp_path / "one", devices=jax.devices()[:1])
    theirs = found[len(alone) :]
    wanted = [np.asarray(x) for x in jax.tree.leaves((one.mask, one.state.params))]
    assert_same(theirs, wanted)
    # What two processes saved on four devices is restored by one on eight.
    again = mesh.train(SHARED, dataset, tmp_path / "run", devices=jax.devices())
    restored = jax.tree.leaves((again.mask, again.state.params))
    for a, b in zip(theirs, restored, strict=True):
        assert len(b.sharding.device_set) == 8
        np.testing.assert_array_equal(a, np.asarray(b))
