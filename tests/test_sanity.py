"""Masks shuffled within layers, and rewinding, which needs no function of its own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import (
    MASK,
    PARAMS,
    assert_pruned_are_zero,
    jitted,
    kept,
    normal,
    numpy_global_mask,
    training_step,
    types,
)

KEY = jax.random.key(5)


def test_a_random_mask_is_not_shuffled_to_itself_by_its_own_key():
    params = normal(0, w=(40, 10))
    mask = jp.layerwise_mask(jp.random(KEY)(params), 0.5)
    same = np.mean(jp.shuffle_mask(KEY, mask)["w"] == np.asarray(mask["w"]))
    assert abs(same - 0.5) < 0.1  # Four standard deviations of 400 coins.


def test_counts_stay_leaf_by_leaf_and_the_key_decides():
    mask = {
        "conv": normal(0, w=(3, 3, 4, 8))["w"] > 1,
        "kernel": normal(1, w=(64, 32))["w"] > 0,
        "bias": jnp.ones(8, bool),
        "emptied": jnp.zeros((4, 4), bool),
        "nothing": jnp.ones((0, 3), bool),
        "scalar": jnp.bool_(True),
    }
    shuffled = jp.shuffle_mask(KEY, mask)
    assert types(shuffled) == types(mask)
    assert jax.tree.map(kept, shuffled) == jax.tree.map(kept, mask)
    for name in ("conv", "kernel"):
        assert not np.array_equal(shuffled[name], mask[name])
    chex.assert_trees_all_equal(shuffled, jp.shuffle_mask(KEY, mask))
    other = jp.shuffle_mask(jax.random.key(6), mask)
    assert not np.array_equal(shuffled["kernel"], other["kernel"])
    chex.assert_trees_all_equal(shuffled, jax.jit(jp.shuffle_mask)(KEY, mask))


def test_every_place_is_as_likely_as_any_other():
    mask = {"w": jnp.array([[True, True, False, False, False]])}
    shuffle = jax.jit(jax.vmap(jp.shuffle_mask, (0, None)))
    masks = np.asarray(shuffle(jax.random.split(KEY, 1000), mask)["w"])[:, 0]
    assert (masks.sum(axis=1) == 2).all()
    found, counts = np.unique(masks, axis=0, return_counts=True)
    assert len(found) == 10  # Two of five.
    # Chi-squared with 9 degrees of freedom: above 30 once in 2,000 keys.
    assert np.sum((counts - 100) ** 2 / 100) < 30


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_shuffled_mask_lies_where_the_mask_lay(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    layout = {"a": NamedSharding(mesh, P("x", "y")), "b": NamedSharding(mesh, P("y"))}
    mask = {n: p > 0 for n, p in normal(2, a=(16, 8), b=(8, 3)).items()}
    expected = jp.shuffle_mask(KEY, mask)
    with jax.set_mesh(mesh):
        placed = jax.device_put(mask, layout)
        for shuffle in (jp.shuffle_mask, jax.jit(jp.shuffle_mask)):
            shuffled = shuffle(KEY, placed)
            for name, leaf in shuffled.items():
                assert leaf.sharding.is_equivalent_to(layout[name], 2)
            chex.assert_trees_all_equal(jax.device_get(shuffled), expected)


def test_masks_may_come_as_numpy():
    mask = jax.tree.map(np.asarray, MASK)
    chex.assert_trees_all_equal(jp.shuffle_mask(KEY, mask), jp.shuffle_mask(KEY, MASK))


def _bits(leaf):
    return np.asarray(leaf).view(np.uint32)


@pytest.mark.parametrize("optimizer_state", ["reset", "kept"])
def test_magnitude_pruning_in_rounds_with_rewinding(optimizer_state):
    tx = optax.chain(optax.adamw(0.1, weight_decay=0.1), jp.keep_sparse())
    step, traces = jitted(training_step(tx))

    def trained_for(steps, params, state):
        for _ in range(steps):
            params, state = step(params, state)
        return params, state

    # Not the initial weights: late rewinding.
    saved, _ = trained_for(2, PARAMS, tx.init(PARAMS))
    before = jax.tree.map(np.array, saved)
    weights, state = saved, tx.init(saved)
    mask = jax.tree.map(lambda p: jnp.ones_like(p, bool), saved)
    for sparsity in (0.2, 0.5, 0.8):
        trained, state = trained_for(5, weights, state)
        moved = [(trained[n] != before[n])[mask[n]] for n in before]
        assert np.concatenate(moved).all()
        by_hand = numpy_global_mask(
            [np.abs(trained[n]) for n in ("head", "kernel")],
            round(sparsity * 18),
            [mask[n] for n in ("head", "kernel")],
        )
        new = jp.global_mask(jp.magnitude(trained), sparsity, prior=mask)
        chex.assert_trees_all_equal([new["head"], new["kernel"]], by_hand)
        assert not any((new[n] & ~mask[n]).any() for n in new)  # Nested.
        mask = new
        weights = jp.apply_mask(saved, mask)
        for n in before:
            survives = np.asarray(mask[n])
            rewound, start = _bits(weights[n]), _bits(before[n])
            np.testing.assert_array_equal(rewound[survives], start[survives])
        assert_pruned_are_zero(weights, mask)
        moments = optax.tree.get(state, "mu")
        state = tx.init(weights) if optimizer_state == "reset" else state
        state = jp.set_mask(state, mask)
        expected = moments
        if optimizer_state == "reset":
            expected = jax.tree.map(jnp.zeros_like, moments)
        chex.assert_trees_all_equal(optax.tree.get(state, "mu"), expected)
    last, state = trained_for(3, weights, state)
    assert len(traces) == 1
    assert_pruned_are_zero(last, mask)
    assert kept((mask["kernel"], mask["head"])) == 18 - round(0.8 * 18)


def test_negated_scores_keep_what_the_scores_remove():
    scores = jp.magnitude(PARAMS)
    best = jp.global_mask(scores, 0.5)
    worst = jp.global_mask(jax.tree.map(jnp.negative, scores), 0.5)
    for name in ("kernel", "head"):
        np.testing.assert_array_equal(worst[name], ~np.asarray(best[name]))
