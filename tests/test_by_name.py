"""Sparsity by name, and stacks of layers: what a whole model is pruned with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import structured
from tests.helpers import normal

BLOCK = {"attn": (8, 8), "mlp": (8, 20), "scale": (8,)}
PARAMS = {
    "blocks": [normal(1, **BLOCK), normal(2, **BLOCK)],
    "head": {"kernel": normal(3, w=(20, 10))["w"], "bias": jnp.ones(10)},
}
RULES = {"^blocks/.*mlp": 0.7, "head": 0.0}
WANTED = {"attn": 0.5, "mlp": 0.7, "scale": 0.0}
TREE = {"blocks": [WANTED, WANTED], "head": {"kernel": 0.0, "bias": 0.0}}


def removed(mask):
    return jax.tree.map(lambda m: m.size - int(m.sum()), mask)


def by_layer(sparsities):
    return jax.tree.map(lambda p, s: round(s * p.size), PARAMS, sparsities)


def test_the_first_match_counts_and_the_rest_get_the_default():
    assert jp.sparsities(PARAMS, RULES, default=0.5) == TREE
    assert jp.sparsities(jax.eval_shape(lambda: PARAMS), RULES, default=0.5) == TREE
    first = jp.sparsities(PARAMS, {"blocks/0": 0.9, "mlp": 0.1})
    assert first["blocks"] == [
        {"attn": 0.9, "mlp": 0.9, "scale": 0.0},
        {"attn": 0.0, "mlp": 0.1, "scale": 0.0},
    ]
    vectors = jp.sparsities(PARAMS, {"bias": 0.5}, prunable=jp.by_path("bias"))
    assert vectors["head"] == {"kernel": 0.0, "bias": 0.5}


@pytest.mark.parametrize(
    ("patterns", "error", "match"),
    [
        ({"blocks/.*up": 0.5}, ValueError, r"'blocks/.\*up' matches no leaf.*0/attn"),
        ({"scale": 0.5}, ValueError, "'scale'.*not prunable.*blocks/0/scale"),
        ({"blocks": 0.5, "mlp": 0.9}, ValueError, "'mlp' decides nothing.*first match"),
        ({"mlp": 1.0}, ValueError, r"pattern 'mlp' is the fraction.*\[0, 1\)"),
        ({"mlp": "0.5"}, TypeError, "pattern 'mlp' must be a number"),
        ({"(": 0.5}, ValueError, "pattern must be a regular expression"),
    ],
)
def test_patterns_that_decide_nothing_are_refused(patterns, error, match):
    with pytest.raises(error, match=match):
        jp.sparsities(PARAMS, patterns)


def test_a_pattern_that_keeps_what_is_dense_anyway_is_no_error():
    assert jp.sparsities(PARAMS, {"scale": 0.0}, default=0.5)["blocks"][0]["mlp"] == 0.5


def test_one_tree_serves_every_mask():
    sparsities = jp.sparsities(PARAMS, RULES, default=0.5)
    scores = jp.magnitude(PARAMS)
    assert removed(jp.layerwise_mask(scores, sparsities)) == by_layer(TREE)
    prefix = jp.layerwise_mask(scores, {"blocks": 0.5, "head": 0.0})
    assert removed(prefix)["blocks"] == [{"attn": 32, "mlp": 80, "scale": 0}] * 2
    rows = removed(jp.row_mask(scores, sparsities))
    assert rows["blocks"][0] == {"attn": 8 * 4, "mlp": 20 * round(0.7 * 8), "scale": 0}
    n = jax.tree.map(lambda s: round(4 * (1 - s)), sparsities)
    fours = removed(jp.n_m_mask(scores, n, 4))
    assert fours["blocks"][1] == {"attn": 8 * 4, "mlp": 20 * 2 * 3, "scale": 0}
    assert fours["head"]["kernel"] == 0


@pytest.mark.parametrize("outside", [False, True])
def test_gradual_prunes_each_leaf_on_its_own_schedule(outside):
    rise = optax.linear_schedule(0.0, 0.6, 4)
    tree = jp.sparsities(PARAMS, {"mlp": rise, "head": 0.0}, default=0.5)
    link = jp.gradual(tree, every=2)
    tx = optax.chain(optax.sgd(0.1), link)
    if outside:  # Only the blocks are seen; the tree is narrowed to them.
        seen = {"blocks": True, "head": False}
        tx = optax.chain(optax.masked(optax.sgd(0.1), seen), optax.masked(link, seen))
    step = jax.jit(tx.update)
    state, params = tx.init(PARAMS), PARAMS
    for k in range(1, 5):
        updates, state = step(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        share = {"attn": 0.5 * (k > 1), "mlp": float(rise(k - k % 2)), "scale": 0.0}
        wanted = {"blocks": [share, share], "head": {"kernel": 0.0, "bias": 0.0}}
        assert removed(jp.get_mask(state, PARAMS)) == by_layer(wanted)


def test_gradual_n_m_takes_a_number_for_each_leaf():
    falls = optax.linear_schedule(4, 2, 2)
    n = jax.tree.map(lambda _: 4, PARAMS)
    n["blocks"][0]["mlp"] = falls
    tx = jp.gradual_n_m(n, 4)
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = tx.update(PARAMS, state, PARAMS)
    assert removed(state.mask)["blocks"][0]["mlp"] == 20 * 2 * 2
    assert sum(jax.tree.leaves(removed(state.mask))) == 20 * 2 * 2


def test_a_group_of_channels_loses_what_its_leaf_is_asked():
    params = normal(0, a=(6, 8), b=(8, 20), c=(20, 3))

    def fn(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["c"]

    groups = structured.channel_groups(fn, params, jnp.ones((2, 6)))
    scores = structured.group_scores(jp.magnitude(params), groups)
    tree = jp.sparsities(params, {"a": 0.25}, default=0.5)
    mask = structured.structured_mask(scores, groups, params, tree, scope="group")
    assert [int(mask[n].any(0).sum()) for n in "abc"] == [6, 10, 3]
    with pytest.raises(ValueError, match='needs scope="group"'):
        structured.structured_mask(scores, groups, params, tree)


# Stacks.

STACK = {"layers": normal(0, kernel=(4, 6, 10), scale=(4, 6)), "head": jnp.ones((6, 2))}


def test_a_stack_is_pruned_as_its_layers_are_one_by_one():
    scores = jp.magnitude(STACK)
    layers, restack = jp.unstack(scores, "^layers/")
    apart = {f"{i}": scores["layers"]["kernel"][i] for i in range(4)}
    mask = restack(jp.layerwise_mask(layers, 0.5))
    alone = jp.layerwise_mask(apart, 0.5)
    for i in range(4):
        np.testing.assert_array_equal(mask["layers"]["kernel"][i], alone[f"{i}"])
    assert mask["layers"]["scale"].all()  # Of one layer it is a vector.
    assert jax.tree.structure(mask) == jax.tree.structure(STACK)
    shapes, _ = jp.unstack(jax.eval_shape(lambda: STACK), "^layers/")
    shares = jp.erk(shapes, 0.5)
    assert shares == jp.erk(layers, 0.5) and len(shares["layers/kernel"]) == 4
    third = jp.sparsities(layers, {"kernel/2": 0.9}, default=0.1)
    kept = restack(jp.layerwise_mask(layers, third))["layers"]["kernel"].sum((1, 2))
    np.testing.assert_array_equal(kept, [54, 54, 6, 54])


def test_stacked_takes_matrices_only():
    flags = jp.stacked("^layers/")(STACK)
    assert flags == {"layers": {"kernel": True, "scale": False}, "head": True}
    mask = jp.global_mask(jp.magnitude(STACK), 0.5, prunable=jp.stacked("^layers/"))
    assert mask["layers"]["scale"].all() and not mask["layers"]["kernel"].all()


def test_unstack_says_what_it_cannot_split():
    with pytest.raises(ValueError, match=r"'blocks' matches no leaf.*layers/kernel"):
        jp.unstack(STACK, "blocks")
    with pytest.raises(ValueError, match="leaf t cannot be split"):
        jp.unstack({"t": jnp.float32(1.0)}, "t")


def test_a_sharded_stack_keeps_its_sharding():
    mesh = jax.make_mesh((8,), ("x",))
    where = jax.sharding.NamedSharding(mesh, jax.P(None, None, "x"))
    scores = {"w": jax.device_put(normal(0, w=(3, 4, 16))["w"], where)}
    layers, restack = jp.unstack(scores, "w")
    mask = restack(jp.layerwise_mask(layers, 0.5))["w"]
    assert mask.sharding == where
    np.testing.assert_array_equal(mask.sum((1, 2)), [32, 32, 32])
