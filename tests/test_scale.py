"""One network on a mesh: the same masks and losses however the devices are cut."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from experiments import data, mesh
from experiments.config import (
    Checkpoints,
    Data,
    Logging,
    Model,
    Parallel,
    Pruning,
    Scaled,
)
from experiments.feed import Feed, held_out, mesh_of
from experiments.mesh import programs
from experiments.models import network
from tests.helpers import kept

CONV = Scaled(
    data=Data("digits", train_size=128, validation_size=64, test_size=60),
    model=Model("convnet", widths=(8,), convolution="patches"),
    method="snip",
    sparsity=0.8,
    checkpoints=Checkpoints(every=100),
    logging=Logging(every=1),
    batch_size=64,
    epochs=2,
)
MOVING = dataclasses.replace(
    CONV,
    model=Model("lenet", widths=(16,)),
    method="rigl",
    sparsity=0.5,
    pruning=Pruning(every=2, until=1.0),
)
FULLY = Parallel(fsdp=-1, microbatches=2)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Compiles faster; what runs is small."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def dataset():
    return data.read(CONV.data)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Runs each row once; returns what it does, and its lines of metrics."""
    found = {}

    def run(config, devices):
        key = config, devices
        if key not in found:
            folder = tmp_path_factory.mktemp("run")
            ours = jax.devices()[:devices]
            state, mask, metrics = mesh.train(config, dataset, folder, devices=ours)
            text = (folder / "metrics.jsonl").read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            found[key] = state, mask, metrics, lines
        return found[key]

    return run


ROWS = {
    "data-parallel": (CONV, Parallel()),
    "fully sharded, regrown, in parts": (MOVING, FULLY),
}


@pytest.mark.parametrize("config, parallel", ROWS.values(), ids=ROWS)
def test_eight_devices_find_the_masks_and_losses_of_one(config, parallel, trained):
    _, one, metrics, lines = trained(config, 1)
    config = dataclasses.replace(config, parallel=parallel)
    _, many, their_metrics, their_lines = trained(config, 8)
    assert jax.tree.leaves(many)[-1].sharding.num_devices == 8
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert kept(one) < sum(m.size for m in jax.tree.leaves(one))
    losses, theirs = (
        [x["loss"] for x in y if "loss" in x] for y in (lines, their_lines)
    )
    assert len(losses) == 4
    np.testing.assert_allclose(losses, theirs, rtol=1e-5)
    assert metrics["sparsity"] == their_metrics["sparsity"]


def test_the_moving_mask_has_moved_within_its_count(trained, dataset):
    """Else the comparison above would say little of regrowth."""
    _, mask, _, _ = trained(MOVING, 1)
    net = network(MOVING.model, dataset.image_shape, dataset.classes)
    root = jax.random.key(MOVING.seed)
    params, _ = net.init(jax.random.fold_in(root, 0))
    key = jax.random.fold_in(root, 2)
    start = jp.layerwise_mask(jp.random(key)(params), jp.erk(params, 0.5))
    pairs = list(zip(*map(jax.tree.leaves, (mask, start)), strict=True))
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    assert all(int(a.sum()) == int(b.sum()) for a, b in pairs)


def test_masks_and_moments_lie_where_their_parameters_do(trained):
    state, final, _, _ = trained(dataclasses.replace(MOVING, parallel=FULLY), 8)
    params = state.params
    shardings = jax.tree.map(lambda x: x.sharding, params)
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(shardings))
    mask = optax.tree.get(state.opt_state, "mask")
    trace = optax.tree.get(state.opt_state, "trace")
    for tree in (mask, trace, final):
        assert jax.tree.map(lambda x: x.sharding, tree) == shardings
    kernel = max(jax.tree.leaves(params), key=lambda p: p.size)
    assert {s.data.size for s in kernel.addressable_shards} == {kernel.size // 8}


def test_the_mask_is_what_snip_removes_from_the_initial_network(trained, dataset):
    _, mask, _, _ = trained(CONV, 1)
    net = network(CONV.model, dataset.image_shape, dataset.classes)
    params, stats = net.init(jax.random.fold_in(jax.random.key(CONV.seed), 0))
    chosen = data.balanced(dataset.train, 10, jax.random.key(CONV.seed + 1))

    def loss_fn(params):
        images = dataset.standardize(chosen.images)
        logits, _ = net.apply(params, stats, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, chosen.labels
        ).mean()

    scores = jax.jit(jp.snip(loss_fn))(params)
    jax.tree.map(np.testing.assert_array_equal, mask, jp.global_mask(scores, 0.8))


# One of each way to find a mask, and each optimizer and forward pass that prunes.
METHODS = """
    prospr eoi k_starts_dissipating set ac_dc sr_ste random_dropout
""".split()


@pytest.mark.parametrize("method", METHODS)
def test_each_kind_of_method_keeps_the_types_of_the_state_on_a_mesh(method, dataset):
    config = dataclasses.replace(
        MOVING, method=method, pruning=Pruning(rounds=2), epochs=10
    )
    devices = mesh_of(FULLY)
    feed = Feed(dataset.train, devices, 64, 2, 0)
    run = programs(config, dataset, devices, feed.steps)
    key = jax.random.key(0)

    def types(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    after, _ = jax.eval_shape(run.step, run.shapes, feed(0), key)
    assert types(after) == types(run.shapes)
    if run.prune is not None:
        scored = data.Split(
            jax.ShapeDtypeStruct((20, 8, 8, 1), jnp.uint8),
            jax.ShapeDtypeStruct((20,), jnp.int32),
        )
        pruned = jax.eval_shape(run.prune, run.shapes, scored, key)
        assert types(pruned) == types(run.shapes)
    mask = jax.eval_shape(run.mask, run.shapes.state, key)
    assert {leaf.dtype for leaf in jax.tree.leaves(mask)} == {jnp.dtype(bool)}


def test_bfloat16_computes_and_float32_is_kept(dataset):
    devices, key = mesh_of(Parallel()), jax.random.key(0)

    def text(compute):
        config = dataclasses.replace(CONV, parallel=Parallel(compute=compute))
        run = programs(config, dataset, devices, 2)
        batch = Feed(dataset.train, devices, 64, 1, 0)(0)
        after, loss = jax.eval_shape(run.step, run.shapes, batch, key)
        assert loss.dtype == jnp.float32
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(
            lambda x: x.dtype, run.shapes
        )
        return str(jax.make_jaxpr(run.step)(run.shapes, batch, key))

    assert "bf16" in text("bfloat16")
    assert "bf16" not in text("float32")


@pytest.mark.parametrize("microbatches", [1, 2])
def test_each_epoch_feeds_every_image_once_in_an_order_of_its_own(
    dataset, microbatches
):
    feed = Feed(dataset.train, mesh_of(Parallel(fsdp=2)), 32, microbatches, seed=3)
    assert feed.steps == 4

    def epoch(number):
        batches = [feed(4 * number + i) for i in range(4)]
        assert batches[0].images.shape == (microbatches, 32 // microbatches, 8, 8, 1)
        assert batches[0].labels.sharding.num_devices == 8
        return [np.asarray(b.images).reshape(32, -1) for b in batches]

    first, second = np.concatenate(epoch(0)), np.concatenate(epoch(1))
    images = dataset.train.images.reshape(128, -1)
    np.testing.assert_array_equal(np.sort(first, 0), np.sort(images, 0))
    np.testing.assert_array_equal(np.sort(second, 0), np.sort(images, 0))
    assert (first != second).any()
    one = Feed(dataset.train, mesh_of(Parallel(), jax.devices()[:1]), 32, 1, 3)
    np.testing.assert_array_equal(
        np.asarray(one(5).images).reshape(32, -1), second[32:64]
    )


def test_held_out_images_are_all_seen_and_filled_up(dataset):
    batches = list(held_out(dataset, mesh_of(Parallel()), 50))
    for name in ("validation", "test"):
        labels = np.concatenate([np.asarray(b.labels) for n, b in batches if n == name])
        assert len(labels) % 8 == 0
        size = dataset.sizes[name]
        np.testing.assert_array_equal(labels[:size], getattr(dataset, name).labels)
        assert (labels[size:] == -1).all()


def test_what_cannot_be_cut_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"fsdp is 3, but there are 8 devices"):
        mesh_of(Parallel(fsdp=3))
    with pytest.raises(ValueError, match="batch_size is 60: 1 microbatches on 8"):
        mesh.train(dataclasses.replace(CONV, batch_size=60), dataset, tmp_path)
    with pytest.raises(ValueError, match="batch_size is 640, but there are only 128"):
        mesh.train(dataclasses.replace(CONV, batch_size=640), dataset, tmp_path)
    with pytest.raises(ValueError, match="'imp' trains several networks"):
        dataclasses.replace(CONV, method="imp")
    with pytest.raises(ValueError, match="'epi' decides between epochs"):
        dataclasses.replace(CONV, method="epi")
    with pytest.raises(ValueError, match="'wanda' prunes trained networks"):
        dataclasses.replace(CONV, method="wanda")
    with pytest.raises(ValueError, match=r"checkpoints\.every is 0"):
        dataclasses.replace(CONV, checkpoints=Checkpoints(every=0))
