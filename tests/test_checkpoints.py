"""Runs that are killed end as those that are not; what is damaged is refused."""

import contextlib
import dataclasses
import gc
import json
import logging
import multiprocessing
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from experiments import feed
from experiments.checkpoints import CheckpointError, Keeper, checksums
from experiments.config import Logging, Parallel
from experiments.mesh import Progress
from experiments.training import State
from tests.processes import MORTAL, SHARED, killable

STEPS = 2 * MORTAL.epochs

# Orbax leaves coroutines behind when it fails to read.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module", autouse=True)
def _collected():
    """Deletes them before another module's tests could be blamed for them."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def processes():
    """Processes that fork from one which has imported everything, and run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.processes", "experiments.mesh", "sklearn.datasets"]
    )
    return context


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    """The end of a run that nobody kills, and where its compiled programs lie."""
    folder, cache = (tmp_path_factory.mktemp(name) for name in ("run", "cache"))
    process = processes.Process(target=killable, args=(folder, cache))
    process.start()
    process.join()
    assert process.exitcode == 0
    return end(folder), cache


def end(folder):
    with np.load(folder / "end.npz") as archive:
        return list(archive.values())


def done(folder):
    """The last step that metrics tell of."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])[
            "step"
        ]
    return 0


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    processes, uninterrupted, tmp_path
):
    kills, (wanted, cache) = 3, uninterrupted
    draw = random.Random(kills)
    cut_short = 0
    for kill in range(kills):
        process = processes.Process(target=killable, args=(tmp_path, cache))
        process.start()
        # Spread over half of the run; then within the next steps, and their saves.
        reached = (kill + draw.random()) * STEPS / 2 / kills
        while done(tmp_path) < reached and process.is_alive():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()  # SIGKILL
        process.join()
        assert process.exitcode == -9
        assert not (tmp_path / "end.npz").exists()
        names = [path.name for path in (tmp_path / "checkpoints").glob("*tmp*")]
        cut_short += bool(names)
    process = processes.Process(target=killable, args=(tmp_path, cache))
    process.start()
    process.join()
    assert process.exitcode == 0
    print(f"{kills} kills, {cut_short} of them during a save")
    found = end(tmp_path)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [x["step"] for x in map(json.loads, lines) if "loss" in x]
    assert losses == list(range(1, STEPS + 1))  # None twice, none missing.


MASK = {"w": np.arange(64).reshape(8, 8) % 3 > 0}
PARAMS = {"w": np.where(MASK["w"], 1.0 + np.arange(64).reshape(8, 8), 0.0)}


def state_at(step, params=PARAMS, link=jp.keep_sparse):
    """A state by hand; the weights say which step it is of."""
    params = jax.tree.map(lambda p: jnp.asarray(p * step, jnp.float32), params)
    mask = jax.tree.map(jnp.asarray, MASK)
    tx = optax.chain(optax.sgd(0.1, 0.9), link(mask))
    stats = {"mean": jnp.full(3, 0.5, jnp.bfloat16)}
    return Progress(jnp.int32(step), State(params, stats, tx.init(params)))


def shapes_on(parallel, state):
    devices = feed.mesh_of(parallel)

    def shape(x):
        where = feed.split(devices, x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(shape, state)


SHAPES = Parallel(fsdp=-1)


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints 3 and 4 of a run, and a way to open it."""

    @contextlib.contextmanager
    def keeper(config=SHARED):
        found = Keeper(tmp_path / "checkpoints", config)
        yield found
        found.close()

    with keeper() as found:
        for step in (1, 2, 3, 4):
            found.save(state_at(step), step)
    return tmp_path / "checkpoints", keeper


def restored(keeper, config=SHARED, parallel=SHAPES):
    with keeper(config) as found:
        return found.restore(shapes_on(parallel, state_at(0)))


def rewrite(path, change):
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


@pytest.mark.parametrize("parallel", [SHAPES, Parallel(fsdp=2), Parallel()])
def test_a_state_is_restored_onto_any_mesh(saved, parallel):
    folder, keeper = saved
    found, wanted = restored(keeper, parallel=parallel), state_at(4)
    names = {path.name for path in folder.iterdir() if path.name.isdigit()}
    assert names == {"2", "3", "4"}  # The newest three.
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    found = found.state
    shards = found.params["w"].addressable_shards
    parts = 8 if parallel.fsdp == -1 else parallel.fsdp
    assert {s.data.size for s in shards} == {64 // parts}
    mask = jp.get_mask(found.opt_state, found.params)["w"]
    assert mask.sharding == found.params["w"].sharding


def truncated(folder):
    large = max(
        (p for p in (folder / "4" / "progress").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    large.write_bytes(large.read_bytes()[: large.stat().st_size // 2])


def flipped(folder):
    """One bit of the largest array, which orbax does not always notice."""
    large = max(
        (p for p in (folder / "4" / "progress").rglob("d/*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    content = bytearray(large.read_bytes())
    content[len(content) // 2] ^= 1
    large.write_bytes(content)


def summed(folder):
    def change(about):
        about["checksums"][0] ^= 1

    rewrite(folder / "4" / "about" / "metadata", change)


def emptied(folder):
    for path in (folder / "4").rglob("*"):
        if path.is_file():
            path.unlink()


def of_another_kind(folder):
    rewrite(folder / "4" / "about" / "metadata", lambda x: x.pop("config"))


DAMAGE = {
    truncated: "cannot be restored",
    flipped: "Checkpoint 4",
    summed: "was altered: its checksums differ",
    emptied: "truncated, or not from these experiments",
    of_another_kind: "truncated, or not from these experiments",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda x: x.__name__)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(
    damage, saved, caplog
):
    folder, keeper = saved
    damage(folder)
    with caplog.at_level(logging.WARNING):
        found = restored(keeper)
    assert int(found.step) == 3
    np.testing.assert_array_equal(found.state.params["w"], 3 * PARAMS["w"])
    assert f"Checkpoint 4 of {folder}" in caplog.text
    assert DAMAGE[damage] in caplog.text
    assert "resumes from step 3" in caplog.text
    assert (folder.parent / "refused" / "4.0").is_dir()
    with keeper() as again:  # Its number is free.
        again.save(state_at(4), 4)
    assert int(restored(keeper).step) == 4


def test_a_run_with_another_config_is_refused_by_the_option_that_differs(saved):
    _, keeper = saved
    other = dataclasses.replace(SHARED, sparsity=0.5)
    with pytest.raises(CheckpointError, match=r"its sparsity is 0.8, but here 0.5"):
        restored(keeper, other)
    elsewhere = dataclasses.replace(
        SHARED, parallel=Parallel(fsdp=2), logging=Logging(every=7)
    )
    assert int(restored(keeper, elsewhere).step) == 4


STATES = {
    "mask that does not match its weights: 22 pruned": state_at(
        5, params={"w": np.ones((8, 8))}
    ),
    r"(?s)cannot be restored.*opt_state\[1\]": state_at(
        5, link=lambda mask: optax.identity()
    ),
    r"(?s)cannot be restored.*params\.b": state_at(
        5, params={**PARAMS, "b": np.ones(3)}, link=lambda mask: jp.keep_sparse()
    ),
    r"(?s)cannot be restored.*\(8, 8\).*\(8, 4\)": state_at(
        5, params={"w": np.ones((8, 4))}, link=lambda mask: jp.keep_sparse()
    ),
}


@pytest.mark.parametrize("message", STATES, ids=["wrong", "none", "more", "shape"])
def test_a_state_with_the_wrong_leaves_or_mask_is_refused(message, tmp_path):
    assert (~MASK["w"]).sum() == 22
    keeper = Keeper(tmp_path / "checkpoints", SHARED)
    keeper.save(STATES[message], 5)
    keeper.close()
    keeper = Keeper(tmp_path / "checkpoints", SHARED)
    with pytest.raises(CheckpointError, match=message):
        keeper.restore(shapes_on(SHAPES, state_at(0)))
    keeper.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int8"])
def test_checksums_are_sums_of_words_on_any_mesh(dtype):
    values = np.random.default_rng(0).integers(0, 2, (8, 3, 5))
    array = jnp.asarray(values if dtype == "bool" else values * 5 - 3, dtype)
    words = {"float32": np.uint32, "bfloat16": np.uint16}.get(dtype, np.uint8)
    flat = np.ravel(np.asarray(array)).view(words)
    wanted = sum(map(int, flat)) % 2**32
    devices = feed.mesh_of(Parallel(fsdp=-1))
    cut = jax.device_put(array, jax.NamedSharding(devices, jax.P(feed.PARTS)))
    assert checksums([array, cut]) == [wanted, wanted]
