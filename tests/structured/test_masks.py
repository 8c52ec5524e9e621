"""Scores of channels, and masks that meet a budget."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import structured
from tests.structured.harness import arrays, normal


def mlp(params, x):
    x = jax.nn.relu(x @ params["a"])
    return jax.nn.relu(x @ params["b"] + params["bias"][None]) @ params["c"]


X = jax.ShapeDtypeStruct((3, 4), jnp.float32)
PARAMS = arrays(a=(4, 10), b=(10, 20), bias=(20,), c=(20, 3))
GROUPS = structured.channel_groups(mlp, PARAMS, X)
SCORES = tuple(
    np.random.default_rng(0).permutation(30)[i : i + n] for i, n in ((0, 10), (10, 20))
)
build = functools.partial(structured.structured_mask, SCORES, GROUPS, PARAMS)


def kept(mask):
    return [count.kept for count in structured.channel_report(mask, GROUPS).groups]


REDUCED = {
    "sum": lambda w: w.sum(-1),
    "abs_sum": lambda w: abs(w.sum(-1)),
    "l2": lambda w: np.sqrt((w**2).sum(-1)),
    "mean": lambda w: w.mean(-1),
}


@pytest.mark.parametrize("reduce", REDUCED)
def test_scores_are_those_of_the_filters_or_of_all_members(reduce):
    p = {name: np.asarray(leaf) for name, leaf in PARAMS.items()}
    _, found = structured.group_scores(PARAMS, GROUPS, reduce=reduce)
    np.testing.assert_allclose(found, REDUCED[reduce](p["b"].T), rtol=1e-5)
    _, found = structured.group_scores(PARAMS, GROUPS, reduce=reduce, members="all")
    weights = np.concatenate([p["b"].T, p["bias"][:, None], p["c"]], axis=1)
    np.testing.assert_allclose(found, REDUCED[reduce](weights), rtol=1e-5)


def test_repeated_positions_belong_to_one_channel():
    def fn(params, x):
        x = jax.lax.conv(x, params["w"], (1, 1), "SAME")
        return x.reshape(len(x), -1) @ params["v"]

    params = arrays(w=(5, 3, 3, 3), v=(5 * 4, 2))
    groups = structured.channel_groups(fn, params, normal(2, 3, 2, 2))
    (found,) = structured.group_scores(params, groups, members="all")
    wanted = params["w"].sum((1, 2, 3)) + params["v"].reshape(5, 8).sum(1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_half_precision_scores_are_summed_in_single():
    halves = jax.tree.map(lambda p: jnp.ones_like(p, jnp.float16) * 300, PARAMS)
    found = structured.group_scores(halves, GROUPS, reduce="l2")
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], np.full(10, 600.0))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.9])
def test_channels_are_exact_and_the_least(sparsity):
    removed = round(sparsity * 30)
    cut = np.sort(np.concatenate(SCORES))[removed]
    mask = build(sparsity)
    assert kept(mask) == [int((s >= cut).sum()) for s in SCORES]
    best = np.asarray(SCORES[1]) >= cut
    np.testing.assert_array_equal(mask["bias"], best)
    np.testing.assert_array_equal(mask["c"], np.repeat(best[:, None], 3, 1))
    rows = np.asarray(SCORES[0]) >= cut
    np.testing.assert_array_equal(mask["b"], rows[:, None] & best)


def test_every_group_alike():
    assert kept(build(0.5, scope="group")) == [5, 10]
    assert kept(build(0.85, scope="group", min_keep=3)) == [3, 3]


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scope", ["global", "group"])
def test_parameters_overshoot_by_less_than_a_channel(sparsity, scope):
    mask = build(sparsity, budget="params", scope=scope)
    size = sum(leaf.size for leaf in PARAMS.values())
    removed = size - sum(int(np.sum(m)) for m in mask.values())
    dearest = max(4 + 20, 10 + 1 + 3)  # Of one channel of either group.
    assert sparsity * size <= removed < sparsity * size + dearest


def test_flops_overshoot_by_less_than_a_channel():
    def flops(mask):
        return jp.cost(mlp, PARAMS, X, mask=mask).sparse_flops

    mask = build(0.5, budget=flops)
    whole = jp.cost(mlp, PARAMS, X).flops
    assert 0.5 * whole <= whole - flops(mask) < 0.5 * whole + 2 * 3 * (4 + 20)


@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_kept_channels_are_a_multiple(sparsity):
    counts = kept(build(sparsity, round_to=4))
    assert all(
        n % 4 == 0 or n == size for n, size in zip(counts, (10, 20), strict=True)
    )
    removed = 30 - sum(counts)
    assert sparsity * 30 <= removed < sparsity * 30 + 4


def test_floors_and_protection_win():
    assert kept(build(0.99)) == [1, 1]
    assert kept(build(0.99, min_keep=3)) == [3, 3]
    assert kept(build(0.99, min_keep=0.05)) == [1, 2]
    assert kept(build(0.5, protect=["a"])) == [10, 5]
    mask = build(0.99, min_keep=3)
    best = np.sort(np.argsort(SCORES[1])[-3:])
    np.testing.assert_array_equal(np.flatnonzero(mask["bias"]), best)


def test_of_equal_scores_the_later_channel_goes():
    mask = structured.structured_mask([np.zeros(10), np.zeros(20)], GROUPS, PARAMS, 0.5)
    assert kept(mask) == [10, 5]
    np.testing.assert_array_equal(np.flatnonzero(mask["bias"]), np.arange(5))


def test_the_report_reads_as_a_table():
    report = structured.channel_report(build(0.5), GROUPS)
    assert report.total == ("all", 15, 30)
    assert str(report).splitlines()[-2].split() == ["all", "15", "30", "50.0", "%"]
    asked = structured.channel_report(build(0.99, min_keep=3), GROUPS, asked=0.99)
    assert str(asked).splitlines()[-1].split() == ["asked", "99.0", "%"]
    kept = sum(int(np.sum(m)) for m in jax.tree.leaves(build(0.99, min_keep=3)))
    size = sum(p.size for p in jax.tree.leaves(PARAMS))
    assert asked.parameters == ("parameters", kept, size)


BAD = {
    "nan": (
        lambda: structured.structured_mask(
            [np.full(10, np.nan), SCORES[1]], GROUPS, PARAMS, 0.5
        ),
        "NaN",
    ),
    "too few": (
        lambda: structured.structured_mask(SCORES[:1], GROUPS, PARAMS, 0.5),
        "2 groups",
    ),
    "shape": (
        lambda: structured.structured_mask(SCORES[::-1], GROUPS, PARAMS, 0.5),
        "10 channels",
    ),
    "no groups": (
        lambda: structured.structured_mask([], GROUPS[:0], PARAMS, 0.5),
        "no groups",
    ),
    "scope": (lambda: build(0.5, scope="layer"), "scope"),
    "budget": (lambda: build(0.5, budget="flops"), "budget"),
    "protect": (lambda: build(0.5, protect=["z"]), "protect"),
    "a string": (lambda: build(0.5, protect="a"), "protect"),
    "sparsity": (lambda: build(1.5), "sparsity"),
    "round_to": (lambda: build(0.5, round_to=0), "round_to"),
    "min_keep": (lambda: build(0.5, min_keep=1.5), "min_keep"),
    "reduce": (lambda: structured.group_scores(PARAMS, GROUPS, reduce="max"), "reduce"),
    "members": (
        lambda: structured.group_scores(PARAMS, GROUPS, members="x"),
        "members",
    ),
    "missing": (
        lambda: structured.group_scores({"a": PARAMS["a"]}, GROUPS),
        "lacks the leaf b",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_in_the_users_words(name):
    call, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_scores_without_values_are_refused():
    with pytest.raises(TypeError, match="outside jit"):
        jax.eval_shape(
            lambda s: structured.structured_mask(s, GROUPS, PARAMS, 0.5), SCORES
        )


@pytest.mark.parametrize("reduce", ["sum", "abs_sum", "l2", "mean"])
@pytest.mark.parametrize("members", ["producers", "all"])
def test_scores_on_the_host_are_those_under_jit(reduce, members):
    def fn(p, x):
        return jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]

    params = arrays(w=(5, 8), b=(8,), v=(8, 3))
    groups = structured.channel_groups(fn, params, normal(4, 5))

    def score(scores):
        return structured.group_scores(scores, groups, reduce=reduce, members=members)

    for dtype in (jnp.float32, jnp.bfloat16):
        scores = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)
        (host,), (traced,) = score(scores), jax.jit(score)(scores)
        assert isinstance(host, jax.Array) and host.dtype == traced.dtype
        np.testing.assert_allclose(host, traced, rtol=1e-5)
