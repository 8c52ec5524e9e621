"""Masks found in rounds, against the same rounds written out by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.helpers import kept, normal

X = jax.random.normal(jax.random.key(3), (16, 8))


def loss_fn(params, x):
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - 1.0) ** 2)


def make_params(seed=0):
    return normal(seed, **{"in": (8, 12), "out": (12, 3)})


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_iterative_snip_is_its_rounds_by_hand(rounds):
    params = make_params()
    size, mask = 132, jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    for r in range(1, rounds + 1):
        masked = {k: np.where(mask[k], params[k], 0) for k in params}
        g = jax.grad(loss_fn)({k: jnp.asarray(v) for k, v in masked.items()}, X)
        score = np.concatenate(
            [np.ravel(np.abs(masked[k] * g[k])) for k in ("in", "out")]
        )
        alive = np.concatenate([np.ravel(mask[k]) for k in ("in", "out")])
        score = np.where(alive, score, -1.0)
        keep = size - round((1 - 0.1 ** (r / rounds)) * size)
        flat = np.zeros(size, bool)
        flat[np.argsort(-score, kind="stable")[:keep]] = True
        mask = {"in": flat[:96].reshape(8, 12), "out": flat[96:].reshape(12, 3)}
    ours = jp.iterative_mask(jp.snip(loss_fn), params, X, sparsity=0.9, rounds=rounds)
    chex.assert_trees_all_equal(ours, jax.tree.map(jnp.asarray, mask))


def test_one_round_is_one_shot():
    params = make_params()
    once = jp.global_mask(jp.snip(loss_fn)(params, X), 0.8)
    ours = jp.iterative_mask(jp.snip(loss_fn), params, X, sparsity=0.8, rounds=1)
    chex.assert_trees_all_equal(ours, once)


@pytest.mark.parametrize("mapped", [False, True])
def test_rounds_in_double_precision_serve_max_pooling(mapped):
    """Its gradient is formed while JAX batches and compiles, and must be double too."""

    def apply_fn(params, x):
        pooled = jax.lax.reduce_window(
            x @ params["in"], -jnp.inf, jax.lax.max, (1, 2), (1, 2), "VALID"
        )
        return pooled @ params["out"]

    def find(params):
        score = jp.synflow(apply_fn, dtype=jnp.float64)
        return jp.iterative_mask(score, params, X[:1], sparsity=0.5, rounds=2)

    params = normal(0, **{"in": (8, 12), "out": (6, 3)})
    if mapped:
        seeds = jax.tree.map(lambda p: p[None], params)
        mask = jax.tree.map(lambda m: m[0], jax.vmap(find)(seeds))
    else:
        mask = find(params)
    # By hand: a path from x_i to output j runs through the larger of two columns.
    a, b = (np.abs(np.asarray(params[n], np.float64)) for n in ("in", "out"))
    size = a.size + b.size
    kept_a, kept_b = np.ones(a.shape, bool), np.ones(b.shape, bool)
    for keep in (round(size * 0.5**0.5), size // 2):
        wa, wb = a * kept_a, b * kept_b
        sums = wa.sum(0)
        wins = np.repeat(sums.reshape(6, 2).argmax(1), 2) == np.tile([0, 1], 6)
        score_a = wa * (wins * np.repeat(wb.sum(1), 2))
        score_b = wb * np.where(wins, sums, 0).reshape(6, 2).sum(1)[:, None]
        flat = np.concatenate([score_a.ravel(), score_b.ravel()])
        alive = np.concatenate([kept_a.ravel(), kept_b.ravel()])
        chosen = np.zeros(size, bool)
        chosen[np.argsort(-np.where(alive, flat, -1), kind="stable")[:keep]] = True
        kept_a, kept_b = chosen[:96].reshape(a.shape), chosen[96:].reshape(b.shape)
    np.testing.assert_array_equal(mask["in"], kept_a)
    np.testing.assert_array_equal(mask["out"], kept_b)


def test_a_hundred_rounds_of_synflow_trace_once():
    traces = []

    def apply_fn(params, x):
        traces.append(None)
        return jax.nn.relu(x @ params["in"]) @ params["out"]

    mask = jp.iterative_mask(
        jp.synflow(apply_fn), make_params(), X[:1], sparsity=0.95, rounds=100
    )
    assert len(traces) <= 2  # Scan looks at its body once more for the carry's type.
    assert 132 - kept(mask) == round(0.95 * 132)
    # Every hidden unit that is fed is read, and the other way round: no dead ends.
    fed = np.asarray(mask["in"]).any(axis=0)
    read = np.asarray(mask["out"]).any(axis=1)
    np.testing.assert_array_equal(fed, read)


def test_one_program_prunes_to_any_sparsity():
    traces = []

    def score(params, x):
        traces.append(None)
        return jp.snip(loss_fn)(params, x)

    def find(params, sparsity):
        return jp.iterative_mask(score, params, X, sparsity=sparsity, rounds=3)

    params, jitted, counts = make_params(), jax.jit(find), []
    found = {}
    for sparsity in (0.5, 0.9):
        found[sparsity] = jitted(params, sparsity)
        counts.append(len(traces))
    assert counts[0] == counts[1]
    for sparsity, mask in found.items():
        assert 132 - kept(mask) == round(sparsity * 132)
        chex.assert_trees_all_equal(mask, find(params, sparsity))


def test_may_itself_be_jitted():
    params = make_params()
    jitted = jax.jit(
        lambda p: jp.iterative_mask(jp.snip(loss_fn), p, X, sparsity=0.9, rounds=3)
    )
    chex.assert_trees_all_equal(
        jitted(params),
        jp.iterative_mask(jp.snip(loss_fn), params, X, sparsity=0.9, rounds=3),
    )


@pytest.mark.parametrize("rounds", [1, 4])
def test_force_is_its_rounds_by_hand(rounds):
    params = make_params(1)
    size, mask = 132, {k: np.ones(p.shape, bool) for k, p in params.items()}
    for r in range(1, rounds + 1):
        masked = {k: jnp.where(mask[k], params[k], 0) for k in params}
        g = jax.grad(loss_fn)(masked, X)
        score = np.concatenate(
            [np.ravel(np.abs(params[k] * g[k])) for k in ("in", "out")]
        )
        keep = size - round((1 - 0.1 ** (r / rounds)) * size)
        flat = np.zeros(size, bool)
        flat[np.argsort(-score, kind="stable")[:keep]] = True
        mask = {"in": flat[:96].reshape(8, 12), "out": flat[96:].reshape(12, 3)}
    ours = jp.force_mask(loss_fn, params, X, sparsity=0.9, rounds=rounds)
    chex.assert_trees_all_equal(ours, jax.tree.map(jnp.asarray, mask))


def test_force_takes_measures_of_second_order():
    mask = jp.force_mask(
        loss_fn, make_params(), X, sparsity=0.5, rounds=2, measure=jp.measures.grasp
    )
    assert kept(mask) == 66


def test_force_works_where_only_reverse_mode_does():
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, ct: (2 * x * ct,))

    def loss(params, x):
        return jnp.mean(square(x @ params["in"]))

    params = {"in": make_params()["in"]}
    assert kept(jp.force_mask(loss, params, X, sparsity=0.5, rounds=2)) == 48


def test_params_never_change():
    params = make_params()
    before = jax.tree.map(np.array, params)
    jp.iterative_mask(jp.magnitude, params, sparsity=0.9, rounds=3)
    chex.assert_trees_all_equal(params, before)


def test_nan_in_any_round_raises_outside_jit():
    def score(params):
        dead = jnp.any(params["in"] == 0)
        return jax.tree.map(lambda p: jnp.where(dead, jnp.nan, jnp.abs(p)), params)

    with pytest.raises(ValueError, match="NaN in one of the rounds"):
        jp.iterative_mask(score, make_params(), sparsity=0.5, rounds=2)
