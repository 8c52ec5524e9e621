"""Sparse forward passes over dense weights, and where a mask may stand instead."""

import chex
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import jitted, normal, train, training_step, types

SHAPES = {"w": (8, 6), "v": (4, 3), "b": (3,)}
PARAMS = normal(0, **SHAPES)
TARGET = normal(9, **SHAPES)


def _loss(params, scale=1.0):
    """Its gradient at a weight is ``scale * (weight - target)``."""
    parts = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2) / 2, params, TARGET)
    return scale * sum(jax.tree.leaves(parts))


def _two_of_four(params):
    return jp.n_m_mask(jp.magnitude(params), 2, 4)


def _half(params):
    return jp.layerwise_mask(jp.magnitude(params), 0.5)


def _most(params):
    return jp.layerwise_mask(jp.magnitude(params), 0.2)


def _numpy_two_of_four(weights):
    """The two largest of every four along the first axis, by NumPy's sort."""
    groups = np.abs(weights).reshape(-1, 4, weights.shape[1])
    rank = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1)
    return (rank < 2).reshape(weights.shape)


MASKS = {"n_m": _two_of_four, "layerwise": _half, "fixed": lambda _: _most(TARGET)}
each_mask = pytest.mark.parametrize("mask_fn", MASKS.values(), ids=MASKS.keys())


@each_mask
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_value_of_the_sparse_and_gradient_of_the_dense(mask_fn, decay):
    sparse_loss = jp.forward_sparse(_loss, mask_fn, decay=decay)
    loss, gradient = jax.jit(jax.value_and_grad(sparse_loss))(PARAMS, 3.0)
    mask = jax.tree.map(np.asarray, mask_fn(PARAMS))
    expected = 0.0
    for n in PARAMS:
        p, t = np.asarray(PARAMS[n], np.float64), np.asarray(TARGET[n], np.float64)
        sparse = p * mask[n]
        expected += 3 * np.sum((sparse - t) ** 2) / 2
        straight = 3 * (sparse - t) + decay * p * ~mask[n]
        np.testing.assert_allclose(gradient[n], straight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_sr_ste_is_the_papers_update_in_numpy():
    decay, lr = 0.2, 0.1
    loss = jp.forward_sparse(_loss, _two_of_four, decay=decay)
    history = train(optax.sgd(lr), PARAMS, 20, gradient=jax.grad(loss))
    weights = np.asarray(PARAMS["w"], np.float64)
    masks = []
    for params, _ in history:
        mask = _numpy_two_of_four(weights)
        gradient = weights * mask - np.asarray(TARGET["w"], np.float64)
        weights = weights - lr * (gradient + decay * weights * ~mask)
        np.testing.assert_allclose(params["w"], weights, atol=1e-5)
        masks.append(mask)
    assert np.any(~masks[0] & masks[-1])  # Weights did come back.
    final = np.asarray(_two_of_four(params)["w"])
    np.testing.assert_array_equal(final, _numpy_two_of_four(weights))


def test_the_gradient_reaches_the_backward_mask_only():
    loss = jp.forward_sparse(_loss, _half, backward=_most, decay=0.5)
    gradient = jax.grad(loss)(PARAMS)
    everywhere = jax.grad(jp.forward_sparse(_loss, _half, decay=0.5))(PARAMS)
    most = _most(PARAMS)
    for n in PARAMS:
        reached = np.asarray(most[n])
        np.testing.assert_array_equal(gradient[n][~reached], 0.0)
        np.testing.assert_array_equal(gradient[n][reached], everywhere[n][reached])
    assert sum(int((~most[n]).sum()) for n in most) == round(0.2 * 48) + round(0.2 * 12)


def test_a_pruned_weight_that_is_not_a_number_stays_out_of_the_forward_pass():
    params = {**PARAMS, "v": PARAMS["v"].at[0, 0].set(jnp.nan)}
    loss = jp.forward_sparse(_loss, lambda p: jax.tree.map(lambda x: x == x, p))
    zero = {**PARAMS, "v": PARAMS["v"].at[0, 0].set(0.0)}
    assert loss(params) == _loss(zero)


def test_auxiliary_outputs_keywords_and_models_are_handed_on():
    def model(params, x, *, shift):
        return x @ params["w"] + shift, {"size": x.size}

    x = jnp.ones((2, 8))
    out, aux = jp.forward_sparse(model, _two_of_four)(PARAMS, x, shift=2.0)
    sparse = np.asarray(PARAMS["w"]) * _numpy_two_of_four(np.asarray(PARAMS["w"]))
    np.testing.assert_allclose(out, np.ones((2, 8)) @ sparse + 2.0, rtol=1e-5)
    assert aux == {"size": 16}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
def test_half_precision_gradients_are_of_the_parameters_dtype(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    loss = jp.forward_sparse(
        lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(p)), _half, decay=0.5
    )
    gradient = jax.grad(loss)(params)
    assert types(gradient) == types(params)
    mask = _half(params)["w"]
    np.testing.assert_array_equal(gradient["w"][mask], 1.0)
    assert np.all(np.asarray(gradient["w"][~mask], np.float32) != 1.0)


def test_vmap_over_seeds_is_one_gradient_a_seed():
    gradient = jax.grad(jp.forward_sparse(_loss, _half, decay=0.1))
    seeds = [normal(s, **SHAPES) for s in range(3)]
    lanes = jax.vmap(gradient)(jax.tree.map(lambda *x: jnp.stack(x), *seeds))
    for i, params in enumerate(seeds):
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], lanes), gradient(params), rtol=1e-6
        )


def test_sharded_parameters_stay_where_they_lie():
    mesh = jax.make_mesh((4, 2), ("x", "y"))  # Of Explicit axes.
    layout = {"w": P(None, "y"), "v": P(), "b": P()}  # No group is cut.
    loss = jp.forward_sparse(_loss, _two_of_four, decay=0.1)
    expected = jax.grad(loss)(PARAMS)
    with jax.set_mesh(mesh):
        params = {
            n: jax.device_put(p, NamedSharding(mesh, layout[n]))
            for n, p in PARAMS.items()
        }
        step, traces = jitted(jax.grad(loss))
        gradient = step(params)
        assert types(gradient) == types(params)
        step(gradient)
        assert len(traces) == 1
    chex.assert_trees_all_close(jax.device_get(gradient), expected, rtol=1e-5)


def test_an_nnx_model_learns_two_of_four():
    model = nnx.Sequential(
        nnx.Linear(4, 16, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(16, 2, rngs=nnx.Rngs(1)),
    )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(2), (32, 4))

    def loss_fn(params):
        out = nnx.merge(graphdef, params, rest, copy=True)(x)
        return jnp.mean((out - jnp.sin(x[:, :2])) ** 2)

    loss = jp.forward_sparse(loss_fn, _two_of_four, decay=2e-4)
    first = loss(params)
    params, _ = train(optax.adam(0.02), params, 30, gradient=jax.grad(loss))[-1]
    final = jp.apply_mask(params, _two_of_four(params))
    assert jax.tree.structure(final) == jax.tree.structure(params)
    assert loss_fn(final) == loss(params) < 0.5 * first
    np.testing.assert_allclose(jp.sparsity(_two_of_four(params), params), 0.5)


# Where a mask may stand: the statements of docs/where-to-mask.md, one a test

MASK = _half(TARGET)
START = jp.apply_mask(PARAMS, MASK)


def _masked_loss(params):
    return _loss(jp.apply_mask(params, MASK))


def _fixed(params):
    del params
    return MASK


STRAIGHT = jax.grad(jp.forward_sparse(_loss, _fixed))
FORWARD = jax.grad(_masked_loss)
DENSE = jax.grad(_loss)
INNER = {
    "sgd": lambda: optax.sgd(0.05),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "adam": lambda: optax.adam(0.05),
}
each_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())


def _end(tx, gradient, start=START):
    return train(tx, start, 8, gradient=gradient)[-1][0]


@each_inner
def test_from_a_sparse_start_forward_gradients_and_updates_are_the_same(inner):
    updates = _end(optax.chain(inner(), jp.keep_sparse(MASK)), DENSE)
    gradients = _end(jp.sparse(inner(), MASK), DENSE)
    forward = _end(inner(), FORWARD)
    chex.assert_trees_all_close(updates, gradients, rtol=1e-6)
    chex.assert_trees_all_close(updates, forward, rtol=1e-6)


@each_inner
def test_masking_the_forward_pass_leaves_pruned_weights_where_they_were(inner):
    forward = _end(inner(), FORWARD, PARAMS)
    updates = _end(optax.chain(inner(), jp.keep_sparse(MASK)), DENSE, PARAMS)
    for n in MASK:
        pruned = ~np.asarray(MASK[n])
        np.testing.assert_array_equal(forward[n][pruned], PARAMS[n][pruned])
        np.testing.assert_array_equal(updates[n][pruned], 0.0)


def test_under_clipping_masking_gradients_is_masking_forward_and_not_updates():
    mask = jax.tree.map(jnp.logical_not, MASK)  # The large gradients are pruned.
    start = jp.apply_mask(PARAMS, mask)
    inner = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5))
    gradients = _end(jp.sparse(inner, mask), DENSE, start)
    forward = jax.grad(lambda p: _loss(jp.apply_mask(p, mask)))
    chex.assert_trees_all_close(gradients, _end(inner, forward, start), rtol=1e-6)
    updates = _end(optax.chain(inner, jp.keep_sparse(mask)), DENSE, start)
    moved = [
        optax.tree.norm(jax.tree.map(jnp.subtract, end, start))
        for end in (gradients, updates)
    ]
    np.testing.assert_allclose(moved[0], 8 * 0.1 * 0.5, rtol=1e-2)
    assert moved[1] < 0.9 * moved[0]  # The norm was that of pruned weights as well.


# What looks at weights together: at all, a leaf's, a unit's, a row's and a column's.
TOGETHER = {
    "update norm": optax.normalize_by_update_norm,
    "trust ratio": optax.scale_by_trust_ratio,
    "adaptive clipping": lambda: optax.adaptive_grad_clip(0.1),
    "factored": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=2),
}


@pytest.mark.parametrize("scaled", TOGETHER.values(), ids=TOGETHER.keys())
def test_looking_at_weights_together_sees_what_only_updates_have_pruned(scaled):
    mask = jax.tree.map(jnp.logical_not, MASK)  # The large gradients are pruned.
    start = jp.apply_mask(PARAMS, mask)
    inner = optax.chain(scaled(), optax.sgd(0.05))
    gradients = _end(jp.sparse(inner, mask), DENSE, start)
    forward = jax.grad(lambda p: _loss(jp.apply_mask(p, mask)))
    chex.assert_trees_all_close(gradients, _end(inner, forward, start), rtol=1e-5)
    updates = _end(optax.chain(inner, jp.keep_sparse(mask)), DENSE, start)
    for n in ("w", "v"):
        moved = [np.linalg.norm(end[n] - start[n]) for end in (gradients, updates)]
        assert moved[1] < 0.9 * moved[0]


def test_weight_decay_moves_what_only_the_forward_pass_has_pruned():
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    forward = _end(inner, FORWARD, PARAMS)
    for n in MASK:
        pruned = ~np.asarray(MASK[n])
        left = np.asarray(PARAMS[n])[pruned] * (1 - 0.01) ** 8
        np.testing.assert_allclose(forward[n][pruned], left, rtol=1e-5)


@each_inner
def test_straight_through_a_fixed_mask_the_kept_weights_go_the_same_way(inner):
    straight = _end(inner(), STRAIGHT)
    sparse = _end(jp.sparse(inner(), MASK), DENSE)
    chex.assert_trees_all_close(jp.apply_mask(straight, MASK), sparse, rtol=1e-6)
    assert all(np.all(straight[n][~MASK[n]] != 0) for n in ("w", "v"))


def _anew(params):
    return jp.global_mask(jp.magnitude(params), 0.5)


FIRST = _anew(PARAMS)
FAR = jax.tree.map(lambda p, m: jnp.where(m, p, 10.0), PARAMS, FIRST)


def _far_loss(params):
    """Pulls hard, to 10, at what is pruned first, and at first at nothing else."""
    parts = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2) / 2, params, FAR)
    return sum(jax.tree.leaves(parts))


@each_inner
def test_straight_through_a_mask_taken_anew_weights_come_back(inner):
    straight = jax.grad(jp.forward_sparse(_far_loss, _anew))
    last = _anew(_end(inner(), straight, PARAMS))
    assert any(np.any(last[n] & ~FIRST[n]) for n in SHAPES)


@each_inner
@pytest.mark.parametrize(
    "link",
    [lambda tx: optax.chain(tx, jp.keep_sparse()), jp.sparse],
    ids=["updates", "gradients"],
)
def test_under_a_mask_taken_anew_weights_never_come_back(inner, link):
    tx, gradient = link(inner()), jax.grad(_far_loss)
    step, traces = jitted(training_step(tx, gradient))
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(8):
        state = jp.set_mask(state, _anew(params))
        params, state = step(params, state)
        mask, pull = _anew(params), gradient(params)
        for n in ("w", "v"):
            pruned = ~np.asarray(FIRST[n])
            assert not np.any(np.asarray(mask[n])[pruned])
            np.testing.assert_array_equal(params[n][pruned], 0.0)
            np.testing.assert_array_equal(pull[n][pruned], -10.0)
    assert len(traces) == 1


def test_phases_are_set_between_steps_with_nothing_compiled_again():
    """SGD on quadratic wells, by hand: each step halves the way to the target."""
    tx = optax.chain(optax.sgd(0.5), jp.keep_sparse())
    step, traces = jitted(training_step(tx, DENSE))
    params, state = PARAMS, tx.init(PARAMS)
    expected = {n: np.asarray(PARAMS[n], np.float64) for n in SHAPES}
    dense = jax.tree.map(lambda p: jnp.ones_like(p, bool), params)
    for sparse in (True, False, True):
        mask = jp.global_mask(jp.magnitude(params), 0.5) if sparse else dense
        state = jp.set_mask(state, mask)
        for _ in range(2):
            params, state = step(params, state)
            for n in SHAPES:
                stepped = (expected[n] + np.asarray(TARGET[n])) / 2
                expected[n] = np.where(mask[n], stepped, 0.0)
        for n in SHAPES:
            np.testing.assert_allclose(params[n], expected[n], rtol=1e-5, atol=1e-6)
            assert np.array_equal(params[n] == 0, ~np.asarray(mask[n]))
    assert len(traces) == 1
