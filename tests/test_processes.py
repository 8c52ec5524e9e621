"""Several processes on one machine decide as one does, and share checkpoints."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np

from experiments import data, mesh
from tests import processes
from tests.processes import SHARED
from tests.test_scale import _quick  # noqa: F401  The fixture is used.


def start(count, devices, folder):
    """Runs ``count`` processes of ``devices`` each; returns their arrays."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = (
        f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    )
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    given = [sys.executable, "-m", "tests.processes"]
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


def assert_same(found, wanted):
    """Masks bit for bit, numbers to rounding."""
    assert any(x.dtype == bool and not x.all() for x in wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        if a.dtype == bool:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_two_processes_decide_as_one_which_goes_on_from_their_checkpoint(tmp_path):
    found = start(2, 2, tmp_path)
    alone = jax.tree.leaves(processes.library(jax.devices()[:1]))
    assert_same(found[: len(alone)], alone)
    dataset, theirs = data.read(SHARED.data), found[len(alone) :]
    ours = jax.devices()[:1]
    state, mask, _ = mesh.train(SHARED, dataset, tmp_path / "one", devices=ours)
    assert_same(theirs, [np.asarray(x) for x in jax.tree.leaves((mask, state.params))])
    # One process restores on eight devices what two have saved on four.
    state, mask, _ = mesh.train(SHARED, dataset, tmp_path / "run")
    restored = jax.tree.leaves((mask, state.params))
    for a, b in zip(theirs, restored, strict=True):
        assert len(b.sharding.device_set) == 8
        np.testing.assert_array_equal(a, np.asarray(b))
