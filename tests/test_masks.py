"""Mask builders: what each promises, as one table, against NumPy's sort."""

import functools
import inspect
import itertools
import re
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import kept, normal

SHAPES = {"kernel": (3, 3, 8, 16), "matrix": (40, 24), "bias": (24,)}
SIZES = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
PRUNABLE = ["kernel", "matrix"]


def scores_like(seed=0, dtype=jnp.float32, ties=False):
    scores = jax.tree.map(lambda x: x.astype(dtype), normal(seed, **SHAPES))
    return jax.tree.map(jnp.round, scores) if ties else scores


def _sum(params):
    """Its gradient is 1 everywhere, so that FORCE ranks by magnitude."""
    return sum(map(jnp.sum, jax.tree.leaves(params)))


def _without_zeros(scores):
    """Weights that are 0 would be pruned already."""
    return jax.tree.map(lambda x: jnp.where(x == 0, 0.25, x).astype(x.dtype), scores)


def _products(params, scale):
    """Every matrix times unit vectors, so that SparseGPT ranks by magnitude."""

    def product(leaf):
        x = scale * jnp.eye(leaf.size // leaf.shape[-1])
        return jnp.tensordot(x.reshape(-1, *leaf.shape[:-1]), leaf, leaf.ndim - 1)

    return [product(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]


# A builder of one sparsity is one line here and inherits every test below. Up to a
# comma its name is the public one.
BUILDERS = {
    "global_mask": jp.global_mask,
    "global_mask, min_keep": lambda s, p, **kw: jp.global_mask(s, p, min_keep=3, **kw),
    "layerwise_mask": jp.layerwise_mask,
    "layerwise_mask, tree": lambda s, p, **kw: jp.layerwise_mask(
        s, jax.tree.map(lambda _: p, s), **kw
    ),
    "row_mask": jp.row_mask,
    "n_m_mask": lambda s, p, **kw: jp.n_m_mask(s, 8 - round(8 * p), 8, **kw),
    "iterative_mask": lambda s, p, **kw: jp.iterative_mask(
        lambda scores: scores, s, sparsity=p, rounds=3, **kw
    ),
    "force_mask": lambda s, p, **kw: jp.force_mask(_sum, s, sparsity=p, rounds=3, **kw),
    "sparse_gpt": lambda s, p, **kw: jp.sparse_gpt(
        _products, _without_zeros(s), [2.0], sparsity=p, **kw
    )[1],
}
BLOCK = (4, 8)
BLOCK_BUILDERS = {
    "block_mask": lambda s, p, **kw: jp.block_mask(s, p, BLOCK, **kw),
    "block_mask, layerwise": lambda s, p, **kw: jp.block_mask(
        s, p, BLOCK, scope="layerwise", **kw
    ),
}
BUILDERS |= BLOCK_BUILDERS
LAYERWISE = ("layerwise_mask", "layerwise_mask, tree", "block_mask, layerwise")
LAYERWISE += ("sparse_gpt",)  # Where a leaf is one block of columns.


def _table(names):
    rows = [BUILDERS[name] for name in names]
    return pytest.mark.parametrize("build", rows, ids=names)


def _has_prior(name):
    return "prior" in inspect.signature(vars(jp)[name.split(",")[0]]).parameters


each_builder = _table([*BUILDERS])
takes_prior = _table([name for name in BUILDERS if _has_prior(name)])
# Counts of a row or a group are static; a min_keep may ask for more than is left.
STATIC = ("row_mask", "n_m_mask", "sparse_gpt", "global_mask, min_keep")
takes_traced = _table([name for name in BUILDERS if name not in STATIC])


def test_every_builder_has_a_row():
    masks = {name for name in vars(jp) if name.endswith("_mask")}
    others = {f"{verb}_mask" for verb in ("apply", "get", "set", "load", "save")}
    others |= {"shuffle_mask", "update_mask"}  # Of a mask; a link.
    rows = {name.split(",")[0] for name in BUILDERS}
    assert rows == masks - others | {"sparse_gpt"}


def expected_removed(build, sparsity):
    if build is BUILDERS["row_mask"]:  # Of every output, along the inputs.
        outputs = [(SIZES[name], SHAPES[name][-1]) for name in PRUNABLE]
        return sum(round(sparsity * (n // out)) * out for n, out in outputs)
    if build is BUILDERS["n_m_mask"]:  # Of every eight.
        return sum(round(sparsity * 8) * SIZES[name] // 8 for name in PRUNABLE)
    by_leaf = build in [BUILDERS[name] for name in LAYERWISE]
    unit = 32 if build in BLOCK_BUILDERS.values() else 1  # Weights that go together.
    sizes = [SIZES[name] // unit for name in PRUNABLE]
    sizes = sizes if by_leaf else [sum(sizes)]
    return unit * sum(round(sparsity * size) for size in sizes)


@each_builder
@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.99])
def test_exactly_the_right_number_is_removed(build, sparsity):
    total = sum(SIZES[name] for name in PRUNABLE)
    for ties in (False, True):
        mask = build(scores_like(ties=ties), sparsity)
        prunable = {name: mask[name] for name in PRUNABLE}
        assert total - kept(prunable) == expected_removed(build, sparsity)


@each_builder
def test_like_the_scores_and_bool(build):
    scores = scores_like()
    mask = build(scores, 0.5)
    assert jax.tree.structure(mask) == jax.tree.structure(scores)
    for m, s in zip(jax.tree.leaves(mask), jax.tree.leaves(scores), strict=True):
        assert m.shape == s.shape
        assert m.dtype == jnp.bool_


@each_builder
def test_what_is_not_prunable_is_kept(build):
    assert build(scores_like(), 0.9)["bias"].all()
    mask = build(scores_like(), 0.5, prunable=jp.by_path("matrix"))
    assert mask["kernel"].all()
    assert mask["bias"].all()
    assert kept(mask["matrix"]) == 480


def test_a_leaf_of_any_rank_may_be_chosen():
    for build in (jp.global_mask, jp.layerwise_mask):
        mask = build(scores_like(), 0.5, prunable=jp.by_path("bias"))
        assert mask["kernel"].all()
        assert mask["matrix"].all()
        assert kept(mask["bias"]) == 12


@each_builder
def test_nested_in_sparsity(build):
    for seed in range(3):
        scores = scores_like(seed)
        masks = [build(scores, s) for s in (0.2, 0.5, 0.95)]
        for denser, sparser in itertools.pairwise(masks):
            more = jax.tree.map(lambda d, s: np.any(s & ~d), denser, sparser)
            assert not any(jax.tree.leaves(more))


@each_builder
def test_rescaling_the_scores_changes_nothing(build):
    scores = scores_like()
    mask = build(scores, 0.7)
    for scale in (2.0**-20, 4.0):
        rescaled = jax.tree.map(lambda s, scale=scale: scale * s, scores)
        chex.assert_trees_all_equal(build(rescaled, 0.7), mask)


@each_builder
def test_jit_is_eager_and_vmap_is_a_loop(build):
    lanes = [scores_like(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *lanes)
    batched = jax.jit(jax.vmap(lambda s: build(s, 0.7)))(stacked)
    for i, scores in enumerate(lanes):
        for ours, lane in zip(
            jax.tree.leaves(build(scores, 0.7)), jax.tree.leaves(batched), strict=True
        ):
            np.testing.assert_array_equal(ours, lane[i])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_global_keeps_what_a_sort_keeps(dtype):
    for seed in range(3):
        scores = scores_like(seed, dtype, ties=seed == 1)
        mask = jp.global_mask(scores, 0.8)
        names = sorted(PRUNABLE)  # Leaf order of a dict.
        flat = [np.asarray(scores[n], np.float64).ravel() for n in names]
        flat = np.concatenate(flat)
        order = np.lexsort((np.arange(flat.size), -flat))
        expected = np.zeros(flat.size, bool)
        expected[order[: flat.size - round(0.8 * flat.size)]] = True
        ours = np.concatenate([np.asarray(mask[n]).ravel() for n in names])
        np.testing.assert_array_equal(ours, expected)


@takes_traced
def test_a_traced_sparsity_counts_as_the_float32_that_it_is(build):
    scores, find = scores_like(), jax.jit(build)
    total = sum(SIZES[name] for name in PRUNABLE)
    for sparsity in map(np.float32, (0.1, 0.3, 0.55, 0.7, 0.999, 1e-8)):
        mask = find(scores, sparsity)
        removed = total - kept({name: mask[name] for name in PRUNABLE})
        assert removed == expected_removed(build, Fraction(float(sparsity)))


def test_vmap_over_sparsities():
    scores = scores_like(ties=True)
    sparsities = jnp.asarray([0.0, 0.25, 0.5, 0.9], jnp.float32)
    masks = jax.vmap(lambda s: jp.global_mask(scores, s))(sparsities)
    for i, sparsity in enumerate([0.0, 0.25, 0.5]):  # Exact in float32.
        one = jp.global_mask(scores, sparsity)
        for ours, lane in zip(
            jax.tree.leaves(one), jax.tree.leaves(masks), strict=True
        ):
            np.testing.assert_array_equal(ours, lane[i])


def test_half_a_weight_rounds_to_even():
    for size, removed in ((1, 0), (3, 2), (5, 2), (7, 4)):
        mask = jp.global_mask({"w": jnp.ones((1, size))}, 0.5)
        assert size - kept(mask) == removed
        mask = jp.global_mask({"w": jnp.ones((1, size))}, jnp.float32(0.5))
        assert size - kept(mask) == removed


@takes_prior
def test_a_prior_is_respected_and_counts(build):
    scores = scores_like()
    prior = build(jax.tree.map(jnp.negative, scores), 0.3)
    mask = build(scores, 0.8, prior=prior)
    for m, p in zip(jax.tree.leaves(mask), jax.tree.leaves(prior), strict=True):
        assert not (m & ~p).any()
    total = sum(SIZES[name] for name in PRUNABLE)
    removed = total - kept({name: mask[name] for name in PRUNABLE})
    assert removed == expected_removed(build, 0.8)


@takes_prior
def test_a_prior_that_prunes_more_is_returned(build):
    scores = scores_like()
    prior = build(scores, 0.9)
    mask = build(jax.tree.map(jnp.negative, scores), 0.5, prior=prior)
    for m, p in zip(jax.tree.leaves(mask), jax.tree.leaves(prior), strict=True):
        np.testing.assert_array_equal(m, p)


def test_an_empty_leaf_has_nothing_to_remove():
    scores = {"empty": jnp.zeros((0, 25)), "w": normal(w=(4, 5))["w"]}
    for build in (jp.global_mask, jp.layerwise_mask):
        mask = build(scores, 0.5)
        assert mask["empty"].shape == (0, 25)
        assert kept(mask) == 10


def test_min_keep_keeps_the_best_of_every_leaf():
    scores = {"large": 10 + normal(w=(30, 30))["w"], "small": normal(w=(10, 10))["w"]}
    assert not jp.global_mask(scores, 0.9)["small"].any()
    mask = jp.global_mask(scores, 0.9, min_keep=7)
    flat = np.asarray(scores["small"]).ravel()
    best = np.zeros(100, bool)
    best[np.argsort(-flat)[:7]] = True
    np.testing.assert_array_equal(np.asarray(mask["small"]).ravel(), best)
    assert kept(mask) == 1000 - 900


def test_infinities_mean_always_and_first():
    scores = {"w": jnp.asarray([[5.0, -jnp.inf, 1.0, jnp.inf]])}
    np.testing.assert_array_equal(
        jp.global_mask(scores, 0.25)["w"], [[True, False, True, True]]
    )
    np.testing.assert_array_equal(
        jp.global_mask(scores, 0.75)["w"], [[False, False, False, True]]
    )


def test_nan_ranks_below_minus_infinity_inside_jit():
    scores = {"w": jnp.asarray([[jnp.nan, -jnp.inf, 1.0, 2.0]])}
    mask = jax.jit(lambda s: jp.global_mask(s, 0.25))(scores)
    np.testing.assert_array_equal(mask["w"], [[False, True, True, True]])


N_M = [(1, 2, -2), (2, 4, -2), (2, 4, -1), (0, 4, -2), (4, 4, 0), (3, 8, 1)]


@pytest.mark.parametrize(("n", "m", "axis"), N_M)
@pytest.mark.parametrize("ties", [False, True])
def test_n_m_keeps_the_best_of_every_group(n, m, axis, ties):
    scores = normal(a=(8, 16), b=(16, 8, 8), c=(5,))
    scores = jax.tree.map(jnp.round, scores) if ties else scores
    mask = jp.n_m_mask(scores, n, m, axis=axis)
    assert mask["c"].all()
    for name in "ab":
        groups = np.moveaxis(np.asarray(scores[name]), axis, -1)
        groups = groups.reshape(-1, m)
        best = np.argsort(-groups, axis=1, kind="stable")[:, :n]
        expected = np.zeros(groups.shape, bool)
        np.put_along_axis(expected, best, True, axis=1)
        ours = np.moveaxis(np.asarray(mask[name]), axis, -1).reshape(-1, m)
        np.testing.assert_array_equal(ours, expected)


def test_n_m_of_nan_keeps_the_rest_first():
    scores = jnp.asarray([[jnp.nan], [1.0], [-jnp.inf], [jnp.nan]])
    mask = jax.jit(lambda s: jp.n_m_mask(s, 3, 4))(scores)
    np.testing.assert_array_equal(mask[:, 0], [True, True, True, False])


def test_divisible_by_leaves_the_others_dense():
    scores = normal(stem=(3, 8), body=(8, 4))
    mask = jp.n_m_mask(scores, 2, 4, prunable=jp.divisible_by(4))
    assert mask["stem"].all()
    assert kept(mask["body"]) == 16


def test_apply_mask_chooses_and_does_not_multiply():
    params = {"w": jnp.asarray([jnp.nan, jnp.inf, 1.0, -2.0]), "n": jnp.arange(4)}
    keep = jnp.asarray([False, False, True, True])
    masked = jp.apply_mask(params, {"w": keep, "n": keep})
    np.testing.assert_array_equal(masked["w"], [0.0, 0.0, 1.0, -2.0])
    np.testing.assert_array_equal(masked["n"], [0, 0, 2, 3])
    assert masked["n"].dtype == params["n"].dtype


# Sharding: masks of sharded scores are those of whole ones, and nothing is gathered.
SHARDED = {"a": (512, 256), "b": (64, 32), "c": (3, 3, 32, 16)}
SPECS = {"a": P("x", "y"), "b": P("x"), "c": P(None, None, "x", "y")}
SHARDED_BUILDERS = {
    name: functools.partial(lambda build, s: build(s, 0.9), build)
    for name, build in BUILDERS.items()
}
SHARDED_BUILDERS["global_mask, min_keep"] = lambda s: jp.global_mask(
    s, 0.99, min_keep=50
)
GATHERS = ("row_mask", "sparse_gpt")  # They promise the mask and its place alone.


def _moved(text):
    """The sizes of the arrays that devices hand to each other in a compiled text."""
    collectives = r"= (.*) (?:all-gather|all-to-all|collective-permute)(?:-start)?\("
    for found in re.findall(collectives, text):
        for shape in re.findall(r"\w\[([\d,]*)\]", found):
            yield np.prod([int(n) for n in shape.split(",") if n])


@pytest.mark.parametrize("name", SHARDED_BUILDERS)
def test_sharded_scores_give_the_same_mask_and_stay_where_they_are(name):
    build = SHARDED_BUILDERS[name]
    shapes = {n: SHARDED[n] for n in ("b", "c")} if name in GATHERS else SHARDED
    scores = jax.tree.map(lambda x: jnp.round(8 * x), normal(**shapes))
    expected = build(scores)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
        layout = {n: NamedSharding(mesh, SPECS[n]) for n in scores}
        sharded = jax.device_put(scores, layout)
        with jax.set_mesh(mesh):
            compiled = jax.jit(build).lower(sharded).compile()
        # On Auto axes a leaf's type does not say that it is cut: small ones may move.
        explicit = axis_type is AxisType.Explicit
        most = 0 if name not in GATHERS and explicit else 2**16
        text = compiled.as_text()
        assert max(_moved(text), default=0) <= most
        assert name in GATHERS or " sort(" not in text
        chex.assert_trees_all_equal(compiled(sharded), expected)


@each_builder
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_mask_lies_where_its_scores_lie(build, axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    specs = {"w": P("x", "y"), "bias": P("y")}
    scores = {
        k: jax.device_put(v, NamedSharding(mesh, specs[k]))
        for k, v in normal(w=(64, 32), bias=(8,)).items()
    }
    mask = build(scores, 0.9)
    for name, leaf in mask.items():
        assert leaf.sharding.is_equivalent_to(scores[name].sharding, leaf.ndim)


def test_like_shaped_leaves_of_a_shard_are_chosen_from_together():
    # The small ones are stacked, and chosen from under vmap inside of shard_map.
    mesh, scores = jax.make_mesh((8,), ("d",)), normal(w=(64, 4), v=(64, 4))
    mapped = jax.shard_map(
        lambda s: jp.layerwise_mask(s, 0.75),
        mesh=mesh,
        in_specs=P("d"),
        out_specs=P("d"),
    )
    mask = mapped(jax.device_put(scores, NamedSharding(mesh, P("d"))))
    for name, leaf in scores.items():
        blocks = leaf.reshape(8, 8, 4)
        expected = jnp.stack([jp.layerwise_mask(block, 0.75) for block in blocks])
        np.testing.assert_array_equal(mask[name].reshape(8, 8, 4), expected)


def test_the_compiled_text_of_a_mask_holds_no_sort():
    text = (
        jax.jit(lambda s: jp.global_mask(s, 0.9)).lower(normal(w=(300, 300))).as_text()
    )
    assert "stablehlo.sort" not in text
    assert "top_k" not in text


@each_builder
def test_a_shard_decides_on_itself_inside_shard_map_and_pmap(build):
    scores = normal(w=(64, 32))
    blocks = scores["w"].reshape(8, 8, 32)
    build = functools.partial(lambda build, s: build(s, 0.75), build)
    expected = jnp.stack([build({"w": b})["w"] for b in blocks])
    mesh = jax.make_mesh((8,), ("d",))
    mapped = jax.shard_map(build, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    placed = jax.device_put(scores["w"], NamedSharding(mesh, P("d")))
    np.testing.assert_array_equal(
        jax.jit(mapped)({"w": placed})["w"].reshape(blocks.shape), expected
    )
    np.testing.assert_array_equal(jax.pmap(build)({"w": blocks})["w"], expected)


def test_apply_mask_takes_trees_with_random_keys():
    key = jax.random.key(3)
    params = {"w": jnp.array([1.0, 2.0]), "dropout": key}
    mask = {"w": jnp.array([False, True]), "dropout": jnp.array(True)}
    for apply in (jp.apply_mask, jax.jit(jp.apply_mask)):
        masked = apply(params, mask)
        assert masked["w"].tolist() == [0.0, 2.0]
        assert masked["dropout"] == key
