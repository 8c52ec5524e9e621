"""N of every M, reached step by step, against NumPy's sort."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.helpers import assert_pruned_are_zero, jitted, normal, train

SHAPES = {"kernel": (8, 5), "head": (6, 3), "bias": (4,)}
SCHEDULES = {  # None falls on a half: how it is compiled would decide there.
    "line": optax.linear_schedule(4, 1, 11),
    "steps": optax.piecewise_constant_schedule(3.0, {5: 2 / 3, 9: 0.5}),
    "rises": optax.linear_schedule(1, 4, 11),
    "beyond": optax.linear_schedule(6, -2, 14),
    "number": 2,
}


def _numpy_best(scores, n, mask):
    """The n best of every 4 along the first axis that the mask still has."""
    scores = np.where(mask, scores, -1.0).reshape(-1, 4, scores.shape[1])
    rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return (rank < n).reshape(mask.shape) & mask


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_is_the_sort_of_numpy_inside_the_mask_so_far(schedule, every):
    n = SCHEDULES[schedule]
    params = normal(1, **SHAPES)
    gradients = [normal(k, **SHAPES) for k in range(15)]
    tx = optax.chain(
        optax.sgd(0.3),
        jp.gradual_n_m(n, 4, every=every, prunable=jp.divisible_by(4)),
    )
    state, (update, traces) = tx.init(params), jitted(tx.update)
    mask = np.ones((8, 5), bool)
    for k, gradient in enumerate(gradients, start=1):
        number = round(float(n(k))) if callable(n) else n
        if k % every == 0:
            mask = _numpy_best(np.abs(np.asarray(params["kernel"])), number, mask)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found = jp.get_mask(state, params)
        np.testing.assert_array_equal(found["kernel"], mask)
        assert found["head"].all() and found["bias"].all()
        if not mask.all():
            assert_pruned_are_zero(params, found)
    assert not mask.all() and len(traces) == 1


def test_a_weight_that_is_0_by_itself_does_not_cost_another_its_place():
    params = {"w": jnp.array([[1.0], [0.0], [3.0], [2.0]])}
    tx = jp.gradual_n_m(3, 4)
    mask = {"w": jnp.array([[False], [True], [True], [True]])}
    state = jp.set_mask(tx.init(params), mask)
    _, state = tx.update(params, state, params)
    chex.assert_trees_all_equal(optax.tree.get(state, "mask"), mask)


def test_groups_along_another_axis_and_by_another_score():
    params = normal(2, w=(3, 8))
    tx = jp.gradual_n_m(
        1, 4, axis=-1, score=lambda p: jax.tree.map(lambda x: -jnp.abs(x), p)
    )
    mask = optax.tree.get(train(tx, params, 1)[-1][1], "mask")["w"]
    groups = np.abs(np.asarray(params["w"])).reshape(3, 2, 4)
    least = groups == groups.min(axis=-1, keepdims=True)
    np.testing.assert_array_equal(mask, least.reshape(3, 8))


def test_a_traced_n_is_the_number_that_it_is():
    scores = jp.magnitude(normal(3, w=(8, 3)))
    traced = jax.jit(lambda n: jp.n_m_mask(scores, n, 4))
    for n in range(5):
        chex.assert_trees_all_equal(traced(n), jp.n_m_mask(scores, n, 4))
        assert int(traced(n)["w"].sum()) == 6 * n
