"""The small function is an ordinary one, and optimizer states shrink with it."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune import structured
from tests.structured.harness import arrays, close, normal, random_scores


def fn(params, x):
    x = jax.nn.relu(x @ params["a"] + params["bias"][None])
    return x @ params["b"]


PARAMS = arrays(a=(4, 8), bias=(8,), b=(8, 3))
X = normal(5, 4)
GROUPS = structured.channel_groups(fn, PARAMS, X)
MASK = structured.structured_mask(random_scores(GROUPS), GROUPS, PARAMS, 0.5)


def masked(x=X):
    return fn(jp.apply_mask(PARAMS, MASK), x)


@pytest.fixture(scope="module")
def small():
    return structured.shrink(fn, PARAMS, MASK, GROUPS)


def test_under_vmap_and_other_batch_sizes(small):
    small_fn, params = small
    close(small_fn(params, X[:2]), masked()[:2])
    close(jax.vmap(small_fn, (None, 0))(params, X[:, None])[:, 0], masked())


def test_flops_are_those_of_the_narrow_model(small):
    small_fn, params = small
    cost = jp.cost(small_fn, params, X)
    assert cost == (
        4 * 4 + 4 + 4 * 3,
        4 * 4 + 4 + 4 * 3,
        *[2 * 5 * (4 * 4 + 4 * 3)] * 2,
    )


def test_export_reloads_and_runs(small):
    small_fn, params = small
    exported = jax.export.export(small_fn)(params, X)
    close(exported.call(params, X), masked())
    pytest.importorskip("flatbuffers")
    again = jax.export.deserialize(exported.serialize())
    close(again.call(params, X), masked())


def test_one_trace_an_input_shape():
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return fn(params, x)

    small_fn, params = structured.shrink(counted, PARAMS, MASK, GROUPS)
    for x in (X, X + 1, X[:2], X):
        small_fn(params, x)
    assert traces == [(5, 4), (2, 4)]


def test_training_goes_on_with_the_kept_moments(small):
    small_fn, _ = small
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))

    def step(fn, params, state):
        gradient = jax.grad(lambda p: (fn(p, X) ** 2).mean())(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    sparse = jp.apply_mask(PARAMS, MASK)
    full_tx = optax.chain(tx, jp.keep_sparse(MASK))
    gradient = jax.grad(lambda p: (fn(jp.apply_mask(p, MASK), X) ** 2).mean())(sparse)
    updates, state = full_tx.update(gradient, full_tx.init(sparse), sparse)
    sparse = optax.apply_updates(sparse, updates)

    narrowed = structured.narrow((sparse, state[0]), MASK, GROUPS)
    gradient = jax.grad(lambda p: (fn(jp.apply_mask(p, MASK), X) ** 2).mean())(sparse)
    updates, _ = full_tx.update(gradient, state, sparse)
    wanted = optax.apply_updates(sparse, updates)
    found, _ = step(small_fn, *narrowed)
    close(found, structured.narrow(wanted, MASK, GROUPS))


def test_the_moments_of_a_bare_array_are_narrowed():
    def tied(w, x):
        return jnp.tanh(x @ w) @ w.T

    w = PARAMS["a"]
    groups = structured.channel_groups(tied, w, X)
    mask = structured.structured_mask(random_scores(groups), groups, w, 0.5)
    state = structured.narrow(optax.adam(0.1).init(w), mask, groups)
    assert state[0].mu.shape == state[0].nu.shape == (4, 4)


def test_a_tree_of_something_else_is_refused():
    with pytest.raises(ValueError, match="No leaf of the tree belongs to a parameter"):
        structured.narrow({"weights": X}, MASK, GROUPS)
    stateless = optax.scale_by_schedule(lambda step: step).init(PARAMS)
    chex.assert_trees_all_equal(structured.narrow(stateless, MASK, GROUPS), stateless)


def test_weights_pruned_inside_kept_channels_become_zero():
    kept = np.flatnonzero(MASK["bias"])[0]
    mask = {**MASK, "b": MASK["b"].at[kept, 1].set(False)}
    small_fn, params = structured.shrink(fn, PARAMS, mask, GROUPS)
    close(small_fn(params, X), fn(jp.apply_mask(PARAMS, mask), X))


def test_a_channel_with_one_weight_left_stays():
    mask = {**MASK, "b": jnp.ones_like(MASK["b"])}
    _, params = structured.shrink(fn, PARAMS, mask, GROUPS)
    assert params["a"].shape == (4, 8)


def test_an_nnx_model_becomes_an_exported_smaller_one():
    model = nnx.Sequential(
        nnx.Linear(4, 16, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(16, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(16, 3, rngs=nnx.Rngs(0)),
    )
    model.eval()
    graphdef, state = nnx.split(model)

    def apply_fn(state, x):
        return nnx.merge(graphdef, state, copy=True)(x)

    groups = structured.channel_groups(apply_fn, state, X)
    scores = structured.group_scores(jp.magnitude(nnx.state(model, nnx.Param)), groups)
    mask = structured.structured_mask(scores, groups, state, 0.75)
    small_fn, small = structured.shrink(apply_fn, state, mask, groups)
    close(small_fn(small, X), apply_fn(jp.apply_mask(state, mask), X))
    nnx.update(model, small)  # In place: these layers read their sizes off the arrays.
    close(model(X), small_fn(small, X))


def test_errors_are_in_the_users_words(small):
    small_fn, _ = small
    with pytest.raises(ValueError, match="small parameters"):
        small_fn(PARAMS, X)
    nothing = jax.tree.map(jnp.zeros_like, MASK)
    with pytest.raises(ValueError, match="all 8 channels of a"):
        structured.shrink(fn, PARAMS, nothing, GROUPS)
    with pytest.raises(TypeError, match="bool"):
        structured.shrink(fn, PARAMS, PARAMS, GROUPS)
    with pytest.raises(ValueError, match="lacks"):
        rest = {name: MASK[name] for name in ("a", "b")}
        structured.narrow(rest, rest, GROUPS)
    with pytest.raises(ValueError, match="cannot be narrowed"):
        structured.narrow({"nu": {"a": jnp.ones(4)}}, MASK, GROUPS)
    with pytest.raises(TypeError, match="not an array"):
        structured.channel_groups(fn, {**PARAMS, "c": 3.0}, X)


def test_a_shape_at_which_channels_are_coupled_otherwise_is_refused():
    def sized(params, x):
        hidden = x @ params["a"]
        if len(x) > 5:
            hidden = jnp.sort(hidden, axis=-1)
        return hidden @ params["b"]

    params = {"a": PARAMS["a"], "b": PARAMS["b"]}
    groups = structured.channel_groups(sized, params, X)
    mask = {"a": MASK["a"], "b": MASK["b"]}
    small_fn, small = structured.shrink(sized, params, mask, groups)
    small_fn(small, X)
    with pytest.raises(ValueError, match="sort orders it"):
        small_fn(small, normal(6, 4))


def test_groups_are_found_on_shapes_alone_without_running():
    @chex.assert_max_traces(n=1)
    def counted(params, x):
        return fn(params, x)

    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    groups = structured.channel_groups(
        counted, shapes, jax.ShapeDtypeStruct((5, 4), "float32")
    )
    assert str(groups) == str(GROUPS)
