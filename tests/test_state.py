"""Masks in optimizer states, wherever they hide: reading, swapping, placing."""

import re

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
    pull,
    train,
    training_step,
    types,
)

OTHER = {
    "kernel": jnp.arange(12).reshape(4, 3) % 3 == 0,
    "head": jnp.array([[True, True], [False, True], [False, True]]),
    "bias": jnp.array([False, True, True]),
}
LABELS = {"kernel": "a", "head": "b", "bias": "c"}

# Where a mask may hide in a state. A new wrapper is one line here.
PLACES = {
    "last in a chain": lambda m: optax.chain(optax.adam(0.1), jp.keep_sparse(m)),
    "around an optimizer": lambda m: jp.sparse(optax.adam(0.1), m),
    "around an optimizer, moving": lambda m: jp.rigl(
        optax.adam(0.1), m, every=100, until=None
    ),
    "beside a random key": lambda m: jp.set_training(
        optax.adam(0.1), m, key=jax.random.PRNGKey(0), every=100, until=None
    ),
    "sparse inside a chain": lambda m: optax.chain(
        optax.clip(1.0), jp.sparse(optax.adam(0.1), m), optax.scale(1.0)
    ),
    "keep_sparse inside sparse": lambda m: jp.sparse(
        optax.chain(optax.adam(0.1), jp.keep_sparse(m)), m
    ),
    "two links": lambda m: optax.chain(
        optax.adam(0.1), jp.keep_sparse(m), jp.gradual(0.5, every=100)
    ),
    "three links": lambda m: optax.chain(
        optax.adam(0.1),
        jp.k_starts(jax.random.key(0), 2, 0.5, select_at=100),
        jp.dissipating(threshold=0.1, every=100, until=None),
        jp.keep_sparse(m),
    ),
    "a named chain": lambda m: optax.named_chain(
        ("adam", optax.adam(0.1)), ("pruning", jp.keep_sparse(m))
    ),
    "masked": lambda m: optax.chain(
        optax.adam(0.1), optax.masked(jp.keep_sparse(m), jp.matrices)
    ),
    "around masked": lambda m: jp.sparse(optax.masked(optax.adam(0.1), jp.matrices), m),
    "partition": lambda m: optax.partition(
        {
            "a": optax.chain(optax.adam(0.1), jp.keep_sparse(m)),
            "b": jp.sparse(optax.sgd(0.1), m),
            "c": optax.sgd(0.1),
        },
        LABELS,
    ),
    "MultiSteps": lambda m: optax.MultiSteps(
        optax.chain(optax.adam(0.1), jp.keep_sparse(m)), 1
    ).gradient_transformation(),
    "inject_hyperparams": lambda m: optax.inject_hyperparams(
        lambda learning_rate: jp.sparse(optax.sgd(learning_rate), m)
    )(learning_rate=0.1),
    "apply_if_finite": lambda m: optax.apply_if_finite(
        optax.chain(optax.adam(0.1), jp.keep_sparse(m)), 3
    ),
}
HIDES_THE_BIAS = ("masked", "partition")
each_place = pytest.mark.parametrize("place", PLACES)


def _seen(place, mask):
    """The full mask that a place can know of: hidden leaves are all True."""
    if place in HIDES_THE_BIAS:
        return {**mask, "bias": jnp.ones(3, bool)}
    return mask


@each_place
def test_get_mask_finds_it(place):
    state = PLACES[place](MASK).init(PARAMS)
    chex.assert_trees_all_equal(jp.get_mask(state, PARAMS), _seen(place, MASK))


@each_place
def test_set_mask_is_read_back_and_changes_nothing_else(place):
    state = PLACES[place](MASK).init(PARAMS)
    new = jp.set_mask(state, OTHER)
    chex.assert_trees_all_equal(jp.get_mask(new, PARAMS), _seen(place, OTHER))
    chex.assert_trees_all_equal(jp.get_mask(state, PARAMS), _seen(place, MASK))
    assert types(new) == types(state)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(new),
        jax.tree_util.tree_leaves_with_path(state),
        strict=True,
    )
    for (path, leaf), (_, old) in pairs:
        if leaf.dtype != bool:
            np.testing.assert_array_equal(leaf, old, jax.tree_util.keystr(path))


@each_place
def test_set_mask_holds_from_the_next_update_on_without_a_retrace(place):
    tx = PLACES[place](MASK)
    step, traces = jitted(training_step(tx))
    params, state = step(PARAMS, tx.init(PARAMS))
    state = jp.set_mask(state, OTHER)
    for _ in range(2):
        params, state = step(params, state)
        assert_pruned_are_zero(params, _seen(place, OTHER))
    assert len(traces) == 1


@each_place
def test_set_mask_inside_jit(place):
    state = PLACES[place](MASK).init(PARAMS)
    new = jax.jit(jp.set_mask)(state, OTHER)
    chex.assert_trees_all_equal(new, jp.set_mask(state, OTHER))
    found = jax.jit(jp.get_mask)(new, PARAMS)
    chex.assert_trees_all_equal(found, _seen(place, OTHER))


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: optax.chain(jp.keep_sparse(a), jp.keep_sparse(b)),
        lambda a, b: jp.sparse(jp.keep_sparse(b), a),
        lambda a, b: jp.sparse(jp.sparse(optax.sgd(0.1), a), b),
    ],
    ids=["chain", "keep_sparse in sparse", "sparse in sparse"],
)
def test_with_several_links_it_is_their_conjunction(make):
    both = jax.tree.map(lambda a, b: np.asarray(a) & np.asarray(b), MASK, OTHER)
    tx = make(MASK, OTHER)
    chex.assert_trees_all_equal(jp.get_mask(tx.init(PARAMS), PARAMS), both)
    params, _ = train(tx, PARAMS, 3)[-1]
    assert_pruned_are_zero(params, both)


@pytest.mark.parametrize("place", ["last in a chain", "around an optimizer"])
def test_parameters_may_be_called_mask_and_step(place):
    params = {"mask": PARAMS["kernel"], "step": PARAMS["head"]}
    mask = {"mask": MASK["kernel"], "step": MASK["head"]}
    other = {"mask": OTHER["kernel"], "step": OTHER["head"]}
    tx = PLACES[place](mask)
    state = tx.init(params)
    with pytest.raises(KeyError):  # This is what get_mask is for.
        optax.tree.get(state, "mask")
    chex.assert_trees_all_equal(jp.get_mask(state, params), mask)
    state = jp.set_mask(state, other)
    chex.assert_trees_all_equal(jp.get_mask(state, params), other)
    params, state = train(tx, params, 3, state)[-1]
    assert_pruned_are_zero(params, other)


def test_masked_may_hide_a_whole_subtree():
    params = {"a": {"x": PARAMS["kernel"], "y": PARAMS["bias"]}, "b": PARAMS["head"]}
    mask = {"a": {"x": MASK["kernel"], "y": MASK["bias"]}, "b": MASK["head"]}
    other = {"a": mask["a"], "b": OTHER["head"]}
    hidden = {"x": jnp.ones((4, 3), bool), "y": jnp.ones(3, bool)}
    tx = optax.masked(jp.keep_sparse(mask), {"a": False, "b": True})
    state = tx.init(params)
    full = {"a": hidden, "b": MASK["head"]}
    chex.assert_trees_all_equal(jp.get_mask(state, params), full)
    full = {"a": hidden, "b": OTHER["head"]}
    state = jp.set_mask(state, other)
    chex.assert_trees_all_equal(jp.get_mask(state, params), full)
    with pytest.raises(ValueError, match="mask must have the tree structure"):
        jp.get_mask(state, {"b": params["b"], "c": params["b"], "d": params["b"]})


def test_a_weight_that_comes_back_starts_from_zero():
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(MASK))
    params, state = train(tx, PARAMS, 3)[-1]
    state = jp.set_mask(state, jax.tree.map(jnp.logical_not, MASK))
    params, state = train(tx, params, 1, state)[-1]
    back = params["kernel"][~MASK["kernel"]]
    np.testing.assert_allclose(back, 0.1, rtol=1e-6)  # 0 - 0.1 * (2 * 0 - 1)


def test_a_restored_mask_takes_the_place_of_all_true():
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse())
    state = jp.set_mask(tx.init(PARAMS), MASK)
    params, state = train(tx, PARAMS, 2, state)[-1]
    assert_pruned_are_zero(params, MASK)


def test_swapped_masks_are_copies():
    mask = jax.tree.map(jnp.copy, MASK)
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse())
    params = jax.tree.map(jnp.copy, PARAMS)
    state = jp.set_mask(tx.init(params), mask)
    step, _ = jitted(training_step(tx), donate_argnums=(0, 1))
    step(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    chex.assert_trees_all_equal(mask, MASK)


def test_masks_may_come_as_numpy():
    mask = jax.tree.map(np.array, MASK)
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(mask))
    state = tx.init(PARAMS)
    assert types(state) == types(jp.set_mask(state, mask))
    chex.assert_trees_all_equal(jp.get_mask(state, PARAMS), mask)
    mask["kernel"][:] = False  # The state holds a copy.
    assert kept(jp.get_mask(state, PARAMS)) == kept(MASK)


def test_the_mask_logs_from_inside_a_train_step():
    tx = jp.sparse(optax.sgd(0.1), MASK)

    def step(params, state):
        updates, state = tx.update(pull(params), state, params)
        sparsity = jp.sparsity(optax.tree.get(state, "mask"), params)
        return optax.apply_updates(params, updates), state, sparsity

    _, _, sparsity = jitted(step)[0](PARAMS, tx.init(PARAMS))
    np.testing.assert_allclose(sparsity, (6 + 2) / 18)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_a_swapped_mask_lies_where_the_old_one_lay(axis_type):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(axis_type,))
    layout = NamedSharding(mesh, P("x"))
    with jax.set_mesh(mesh):
        params = jax.device_put({"w": jnp.arange(1.0, 9.0).reshape(4, 2)}, layout)
        tx = optax.chain(optax.sgd(0.1), jp.keep_sparse())
        state = tx.init(params)
        mask = {"w": np.arange(8).reshape(4, 2) % 2 == 0}
        new = jp.set_mask(state, mask)
        assert optax.tree.get(new, "mask")["w"].sharding.is_equivalent_to(layout, 2)
        inside = jax.jit(lambda state: jp.set_mask(state, mask))
        assert types(new) == types(state) == types(inside(state))
        step, traces = jitted(training_step(tx))
        step(params, state)
        step(params, new)
        assert len(traces) == 1


def test_a_state_without_a_mask_is_named():
    state = optax.adam(0.1).init(PARAMS)
    advice = re.escape("jp.keep_sparse(mask)")
    with pytest.raises(ValueError, match=f"holds no mask.*{advice}"):
        jp.get_mask(state, PARAMS)
    with pytest.raises(ValueError, match=f"holds no mask.*{advice}"):
        jp.set_mask(state, MASK)
