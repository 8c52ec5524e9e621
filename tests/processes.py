"""One of several processes: ``python -m tests.processes ID COUNT PORT FOLDER``."""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

import jaxprune as jp
from experiments.config import (
    Checkpoints,
    Data,
    Logging,
    Model,
    Parallel,
    Pruning,
    Scaled,
)

SHARED = Scaled(
    data=Data("digits", train_size=128, validation_size=64, test_size=60),
    model=Model("lenet", widths=(16,)),
    method="snip",
    sparsity=0.8,
    parallel=Parallel(fsdp=-1),
    checkpoints=Checkpoints(every=100),
    logging=Logging(every=1),
    batch_size=64,
    epochs=1,
)

# RigL, as its mask moves: a checkpoint of old weights with a new mask would show.
MORTAL = dataclasses.replace(
    SHARED,
    method="rigl",
    pruning=Pruning(every=2, until=1.0),
    checkpoints=Checkpoints(every=2, keep=3),
    epochs=32,
)


def loss_fn(params, x, labels):
    logits = jnp.tanh(x @ params["in"]) @ params["out"] + params["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def library(devices):
    """SNIP, a global mask and two masked steps, all fully sharded; as NumPy arrays."""
    mesh = jax.make_mesh(
        (len(devices),), ("d",), (jax.sharding.AxisType.Auto,), devices=devices
    )
    draw = np.random.default_rng(0)
    host = {
        "params": {
            "in": draw.normal(size=(16, 24)).astype(np.float32),
            "out": draw.normal(size=(24, 8)).astype(np.float32),
            "bias": np.zeros(8, np.float32),
        },
        "batch": (
            draw.normal(size=(32, 16)).astype(np.float32),
            draw.integers(8, size=32),
        ),
    }
    where = jax.sharding.NamedSharding(mesh, jax.P("d"))
    placed = jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, where, lambda i: x[i]), host
    )
    params, batch = placed["params"], placed["batch"]

    scores = jax.jit(jp.snip(loss_fn))(params, *batch)
    mask = jp.global_mask(scores, 0.8)
    tx = optax.chain(optax.adamw(1e-2), jp.keep_sparse(mask))
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        updates, state = tx.update(jax.grad(loss_fn)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = step(params, state, batch)
    for tree in (scores, mask, params, jp.get_mask(state, params)):
        for leaf in jax.tree.leaves(tree):
            assert leaf.sharding.is_equivalent_to(where, leaf.ndim), leaf.sharding
            assert leaf.is_fully_addressable == (jax.process_count() == 1)
    return jax.tree.map(np.asarray, _whole((mask, params, scores)))


def trainer(folder, processes):
    """One network over all processes; its mask and parameters as NumPy arrays."""
    from experiments import data, mesh

    state, mask, _ = mesh.train(SHARED, data.read(SHARED.data), folder)
    devices = jax.tree.leaves(state.params)[0].sharding.mesh.devices
    assert len({d.process_index for d in devices.flat}) == processes
    return _whole((mask, state.params))


def killable(folder, cache):
    """A run on two devices that goes on where its folder stands; writes its end."""
    from experiments import data, mesh

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    dataset = data.read(MORTAL.data)
    state, mask, _ = mesh.train(MORTAL, dataset, folder, devices=jax.devices()[:2])
    leaves = jax.tree.leaves((state, mask))
    np.savez(folder / "end.npz", *map(np.asarray, leaves))


def _whole(tree):
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def main(number, count, port, folder):
    """Joins the others, runs both jobs, and writes the results."""
    number, count, folder = int(number), int(count), pathlib.Path(folder)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, number)
    assert jax.process_count() == count
    found = library(jax.devices()), trainer(folder / "run", count)
    if number == 0:
        np.savez(folder / "found.npz", *map(np.asarray, jax.tree.leaves(found)))


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    main(*sys.argv[1:])
