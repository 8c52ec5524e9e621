"""Sparse µP: the coordinate check, and the link that scales updates leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.helpers import QUICK, normal

BASE = 64  # The width at which the network is tuned, dense.
HIDDEN = jp.by_path("hidden")
INPUTS, TARGETS = normal(0, x=(64, 8), y=(64, 4)).values()


def network(width, sparsity):
    """Initial weights as tuned at the base width, and random masks of hidden leaves."""
    shapes = {"in": (8, width), "out": (width, 4)}
    shapes |= {f"hidden{i}": (width, width) for i in range(2)}
    params = normal(1, **shapes)
    params = {n: p / (8 if n == "in" else BASE) ** 0.5 for n, p in params.items()}
    noise = jp.random(jax.random.key(2))(params)
    return params, jp.layerwise_mask(noise, sparsity, prunable=HIDDEN)


def activations(params, x, output):
    h = jnp.tanh(x @ params["in"])
    sizes = []
    for i in range(2):
        z = h @ params[f"hidden{i}"]
        sizes.append(z)
        h = jnp.tanh(z)
    return sizes, output * (h @ params["out"])


@jax.jit(compiler_options=QUICK)
def coordinates(params, mask, mup):
    """The RMS of hidden pre-activations, and of their change in three steps."""

    def loss_fn(params):
        return jnp.mean((activations(params, INPUTS, mup.output)[1] - TARGETS) ** 2)

    params = jp.apply_mask(jax.tree.map(jnp.multiply, params, mup.init), mask)
    before, _ = activations(params, INPUTS, mup.output)
    tx = optax.chain(
        optax.adam(1e-3), jp.scale_leaves(mup.learning_rate), jp.keep_sparse(mask)
    )
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        params = optax.apply_updates(params, updates)
    after, _ = activations(params, INPUTS, mup.output)
    rms = lambda z: jnp.sqrt(jnp.mean(z**2))  # noqa: E731
    return (
        jnp.array([rms(b) for b in before]),
        jnp.array([rms(a - b) for a, b in zip(after, before, strict=True)]),
    )


def coordinate_check(cases, scaled):
    """One row a (width, density)."""
    rows = []
    for width, density in cases:
        params, mask = network(width, 1 - density)
        mup = jp.sparse_mup(params, 1 - density, hidden=HIDDEN, width=width / BASE)
        if not scaled:
            mup = jp.SparseMup(*jax.tree.map(lambda _: 1.0, tuple(mup)))
        rows.append(np.concatenate(coordinates(params, mask, mup)))
    return np.array(rows)


def test_coordinates_stay_with_it_and_drift_without():
    densities = [(128, 1.0), (128, 1 / 4), (128, 1 / 16)]
    scaled = coordinate_check([(64, 1.0), *densities], scaled=True)
    spread = scaled.max(axis=0) / scaled.min(axis=0)
    assert (spread < 1.5).all(), spread
    unscaled = coordinate_check(densities, scaled=False)
    drift = unscaled.max(axis=0) / unscaled.min(axis=0)
    assert (drift > 2.5).all() and drift[-1] > 16, drift


def test_multipliers_by_hand():
    params = {
        "in": jnp.zeros((3, 8)),
        "mid": {"a": jnp.zeros((8, 8)), "b": jnp.ones(8)},
    }
    sparsities = {"in": 0.5, "mid": {"a": 0.9, "b": 0.3}}
    mup = jp.sparse_mup(
        params, sparsities, hidden=jp.by_path("mid/a"), width=4, base_sparsity=0.6
    )
    expected = {"in": 1.0, "mid": {"a": 1 / (4 * 0.1 / 0.4), "b": 1.0}}
    for ours, theirs in zip(
        jax.tree.leaves((mup.learning_rate, mup.init)),
        jax.tree.leaves((expected, jax.tree.map(np.sqrt, expected))),
        strict=True,
    ):
        assert isinstance(ours, float)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert mup.output == 0.25


def test_a_traced_sparsity_gives_the_same_numbers():
    params = {"in": jnp.ones((2, 4)), "mid": jnp.ones((4, 4))}
    find = jax.jit(
        lambda s: jp.sparse_mup(params, s, hidden=jp.by_path("mid"), width=2),
    )
    for sparsity in (0.5, 0.9):
        mup, left = find(sparsity), 2 * (1 - sparsity)
        np.testing.assert_allclose(mup.init["mid"], left**-0.5, rtol=1e-5)
        np.testing.assert_allclose(mup.learning_rate["mid"], 1 / left, rtol=1e-5)
        assert mup.init["in"] == mup.learning_rate["in"] == 1


def test_abstract_parameters_will_do():
    shapes = {"in": jax.ShapeDtypeStruct((2, 4), jnp.bfloat16)}
    assert jp.sparse_mup(shapes, 0.75, hidden=jp.matrices).learning_rate == {"in": 4}


UPDATES = {"a": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(3)}
FACTORS = {"a": 0.5, "b": 3.0}


def test_updates_are_scaled_and_keep_their_dtypes():
    tx = optax.chain(optax.identity(), jp.scale_leaves(FACTORS))
    updates, _ = jax.jit(tx.update)(UPDATES, tx.init(UPDATES))
    np.testing.assert_array_equal(updates["a"], np.full((2, 2), 0.5))
    np.testing.assert_array_equal(updates["b"], np.full(3, 3.0))
    assert updates["a"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "wrap",
    [
        lambda link: optax.masked(link, {"a": False, "b": True}),
        lambda link: optax.partition(
            {"yes": link, "no": optax.identity()}, {"a": "no", "b": "yes"}
        ),
    ],
    ids=["masked", "partition"],
)
def test_inside_masked_and_partition_the_leaves_in_sight_are_scaled(wrap):
    tx = wrap(jp.scale_leaves(FACTORS))
    updates, _ = tx.update(UPDATES, tx.init(UPDATES), UPDATES)
    np.testing.assert_array_equal(updates["a"], UPDATES["a"])
    np.testing.assert_array_equal(updates["b"], np.full(3, 3.0))


def test_after_adamw_it_is_a_learning_rate_a_leaf():
    params, grads = normal(3, a=(3, 2), b=(4,)), normal(4, a=(3, 2), b=(4,))
    tx = optax.chain(optax.adamw(0.1, weight_decay=0.2), jp.scale_leaves(FACTORS))
    updates, _ = tx.update(grads, tx.init(params), params)
    for name, factor in FACTORS.items():
        own = optax.adamw(0.1 * factor, weight_decay=0.2)
        leaf, grad = params[name], grads[name]
        expected, _ = own.update(grad, own.init(leaf), leaf)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-6)
