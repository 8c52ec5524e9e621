"""When to prune: the triggers against NumPy, over runs that settle and do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.helpers import QUICK, jitted, normal, types

SHAPES = {"kernel": (3, 2, 4), "head": (4, 3), "bias": (3,)}
REFERENCE = normal(0, **SHAPES)


def walk(decay, epochs=8):
    """Weights after every epoch, each move ``decay`` times the one before."""
    rng = np.random.default_rng(0)
    weights = {n: np.asarray(p) for n, p in REFERENCE.items()}
    for epoch in range(epochs):
        weights = {
            n: p + np.float32(0.3 * decay**epoch) * rng.normal(size=p.shape)
            for n, p in weights.items()
        }
        yield {n: jnp.asarray(p, jnp.float32) for n, p in weights.items()}


def flat(weights):
    return np.concatenate(
        [np.ravel(np.asarray(weights[n], np.float64)) for n in ("kernel", "head")]
    )


@pytest.fixture(scope="module")
def updates():
    """Every trigger's update, compiled once for all tests."""
    return {
        p: jax.jit(jp.earlycrop_trigger(p).update, compiler_options=QUICK)
        for p in (0.0, 0.5, 0.9)
    }


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("decay", [0.4, 0.8, 1.0])
def test_earlycrop_fires_when_the_distance_stands_still(sparsity, decay, updates):
    state = jp.earlycrop_trigger(sparsity).init(REFERENCE)
    start, distances, fired = flat(REFERENCE), [0.0], []
    for weights in walk(decay):
        moved = float(np.linalg.norm(flat(weights) - start) / np.linalg.norm(start))
        distances.append(moved)
        still = abs(distances[-1] - distances[-2]) < distances[1] * (1 - sparsity)
        before = types(state)
        due, state = updates[sparsity](weights, state)
        assert types(state) == before
        assert due.shape == () and due.dtype == bool
        assert bool(due) == still
        np.testing.assert_allclose(state.distance, moved, rtol=1e-5)
        fired.append(still)
    assert not fired[0]
    if decay == 0.4:
        assert fired[-1]  # The walk had something to show.


def test_earlycrop_keeps_a_copy_and_leaves_other_leaves_alone():
    weights = jax.tree.map(jnp.copy, REFERENCE)
    state = jp.earlycrop_trigger(0.5).init(weights)
    expected = {n: np.array(p) for n, p in weights.items()}
    jax.tree.map(lambda p: p.delete(), weights)  # As a donating step does.
    for name, value in state.reference.items():
        np.testing.assert_array_equal(value, expected[name])
    moved = {**REFERENCE, "bias": REFERENCE["bias"] + 100}
    _, state = jp.earlycrop_trigger(0.5).update(moved, state)
    assert state.distance == 0


def test_earlycrop_waits_while_weights_are_nan():
    trigger = jp.earlycrop_trigger(0.0)
    state = trigger.init(REFERENCE)
    _, state = trigger.update(next(walk(1.0)), state)
    lost = jax.tree.map(lambda p: p * jnp.nan, REFERENCE)
    due, _ = trigger.update(lost, state)
    assert not due


def random_masks(seed, epochs, settled):
    """Masks of random counts until ``settled``, and of the same counts after."""
    rng = np.random.default_rng(seed)
    masks = []
    for epoch in range(epochs):
        if epoch <= settled:
            counts = [rng.integers(0, 25), rng.integers(0, 13), 3]
        mask = {}
        for count, (name, shape) in zip(counts, SHAPES.items(), strict=True):
            order = rng.permutation(int(np.prod(shape)))
            mask[name] = jnp.asarray((order < count).reshape(shape))
        masks.append(mask)
    return masks


@pytest.mark.parametrize("window", [1, 3])
def test_epi_fires_when_counts_settle(window):
    trigger = jp.epi_trigger(0.95, window=window)
    update, traces = jitted(trigger.update)
    for seed in range(5):
        state = trigger.init(REFERENCE)
        counts, indicators = [], []
        for mask in random_masks(seed, 12, settled=4):
            before = types(state)
            due, state = update(mask, state)
            assert types(state) == before
            kept = np.array([float(np.sum(mask[n])) for n in ("kernel", "head")])
            likeness = []
            for old in counts[-window:]:
                total = np.where(kept + old == 0, 1, kept + old)
                likeness.append(1 - np.mean(np.abs(kept - old) / total))
            defined = len(counts) >= window
            indicators.append(np.mean(likeness) if defined else -np.inf)
            counts.append(kept)
            np.testing.assert_allclose(state.indicators[0], indicators[-1], rtol=1e-5)
            highest = max(indicators[-1 - window :])
            near = abs(indicators[-1] - highest) < 1e-6
            assert bool(due) == (near and indicators[-1] >= 0.95)
        assert due and state.indicators[0] == 1  # Settled long enough.
    assert len(traces) == 1


def test_epi_does_not_fire_on_the_way_down():
    trigger = jp.epi_trigger(0.5, window=2)
    state = trigger.init(REFERENCE)
    fired = []
    for kept in (10, 10, 10, 9, 9, 9, 9):  # Of 12; the other leaves are dense.
        mask = {n: jnp.ones(shape, bool) for n, shape in SHAPES.items()}
        mask["head"] = (jnp.arange(12) < kept).reshape(4, 3)
        due, state = trigger.update(mask, state)
        fired.append(bool(due))
    # The indicators are 1, then 1 - 1/38, 1 - 1/76, and 1 again.
    assert fired == [False, False, True, False, False, True, True]


def test_epi_counts_groups_as_it_counts_weights():
    scores = (jnp.ones(6), jnp.ones(4))
    trigger = jp.epi_trigger(0.9, window=1, prunable=jp.by_path(""))
    state = trigger.init(scores)
    _, state = trigger.update((jnp.ones(6, bool), jnp.ones(4, bool)), state)
    _, state = trigger.update((jnp.arange(6) < 3, jnp.ones(4, bool)), state)
    np.testing.assert_allclose(state.indicators[0], 1 - (3 / 9 + 0) / 2, rtol=1e-6)
    np.testing.assert_array_equal(state.kept, [[3, 4]])
