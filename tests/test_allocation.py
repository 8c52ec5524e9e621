"""What may be pruned, how much of each leaf, and on which schedule."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

PARAMS = {
    "conv": {"kernel": jnp.zeros((3, 3, 16, 32)), "bias": jnp.zeros(32)},
    "head": {"kernel": jnp.zeros((32, 10)), "steps": jnp.zeros((2, 2), jnp.int32)},
}


def flags(prunable, tree=PARAMS):
    leaves = jax.tree_util.tree_leaves_with_path(prunable(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, on in leaves
        if on
    }


def test_which_leaves_are_prunable():
    assert flags(jp.matrices) == {"conv/kernel", "head/kernel"}
    assert flags(jp.by_path("conv/")) == {"conv/kernel", "conv/bias"}
    assert flags(jp.by_path("steps|bias$")) == {"conv/bias"}  # Floating leaves only.
    assert flags(jp.divisible_by(16)) == {"conv/kernel", "head/kernel"}
    assert flags(jp.divisible_by(32)) == {"head/kernel"}
    assert flags(jp.divisible_by(10, axis=-1)) == {"head/kernel"}


def test_prunable_is_also_a_tree_of_bools_or_a_prefix_of_one():
    scores = {"a": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "c": jnp.ones((2, 2))}
    as_function = jp.global_mask(scores, 0.5, prunable=jp.by_path("^a/"))
    tree = {"a": {"w": True, "b": True}, "c": False}
    for prunable in (tree, {"a": True, "c": False}):
        mask = jp.global_mask(scores, 0.5, prunable=prunable)
        chex.assert_trees_all_equal(mask, as_function)
    assert not jp.global_mask(scores, 0.9, prunable=True)["c"].all()
    with pytest.raises(ValueError, match=r"tree of Python bools.*prefix"):
        jp.global_mask(scores, 0.5, prunable={"a": True})


@pytest.mark.parametrize("prunable", [jp.matrices, jp.by_path("k"), jp.divisible_by(4)])
def test_prunable_reads_shapes_only(prunable):
    abstract = jax.eval_shape(lambda: PARAMS)
    assert flags(prunable, abstract) == flags(prunable)
    jax.jit(lambda tree: [prunable(tree), tree][1])(PARAMS)


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.8, 0.9, 0.98])
def test_erk_shares_out_the_whole_budget(sparsity):
    shapes = {"a": (3, 3, 64, 128), "b": (512, 256), "c": (16, 8), "d": (1, 1, 8, 8)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    shares = jp.erk(params, sparsity)
    sizes = {k: int(np.prod(s)) for k, s in shapes.items()}
    removed = sum(shares[k] * sizes[k] for k in shapes)
    assert removed == pytest.approx(sparsity * sum(sizes.values()), abs=1e-6)
    free = [k for k in shapes if shares[k] > 0]
    epsilons = [(1 - shares[k]) * sizes[k] / sum(shapes[k]) for k in free]
    np.testing.assert_allclose(epsilons, epsilons[:1] * len(free))
    for k in set(shapes) - set(free):  # Dense, as its density would pass 1.
        assert not free or epsilons[0] * sum(shapes[k]) >= sizes[k]


def test_erk_feeds_layerwise_mask():
    params = jax.tree.map(
        lambda x: x + 1.0, {"a": jnp.zeros((30, 40)), "b": jnp.zeros(4)}
    )
    shares = jp.erk(params, 0.75)
    mask = jp.layerwise_mask(jp.magnitude(params), shares)
    assert int(mask["a"].sum()) == 300
    assert mask["b"].all()


FIXTURES = [  # Remaining fractions of the published schedule.
    (0.75, 5, [0.625, 0.4545, 0.357, 0.294, 0.25]),
    (0.75, 25, [0.893, 0.806, 0.735, 0.676, 0.625]),
    (0.60, 5, [0.769, 0.625, 0.526, 0.455, 0.40]),
    (0.60, 25, [0.943, 0.893, 0.847]),
]


@pytest.mark.parametrize(("sparsity", "rounds", "remaining"), FIXTURES)
def test_hyperbolic_schedule_is_the_papers(sparsity, rounds, remaining):
    schedule = jp.hyperbolic_schedule(sparsity, rounds)
    ours = [1 - schedule(r) for r in range(1, len(remaining) + 1)]
    np.testing.assert_allclose(ours, remaining, atol=6e-4)
    assert schedule(0) == 0
    assert schedule(rounds) == pytest.approx(sparsity)
    # The product of what the published code keeps of the current weights each round.
    kept = 1.0
    for r in range(1, rounds + 1):
        kept *= 1 - sparsity / (r * sparsity + rounds * (1 - sparsity))
        assert 1 - schedule(r) == pytest.approx(kept)


@pytest.mark.parametrize("make", [jp.hyperbolic_schedule, jp.exponential_schedule])
def test_schedules_take_traced_rounds(make):
    schedule = make(0.9, 10)
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(11))
    np.testing.assert_allclose(traced, [schedule(r) for r in range(11)], atol=1e-6)


def test_exponential_schedule_keeps_a_constant_share():
    schedule = jp.exponential_schedule(0.9, 4)
    kept = np.array([1 - schedule(r) for r in range(5)])
    np.testing.assert_allclose(kept[1:] / kept[:-1], 0.1**0.25)
