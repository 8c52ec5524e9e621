"""LAMP against its definition, and against removing weights one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import normal

SHAPES = {"kernel": (3, 4, 2), "head": (8, 4)}


def weights_of(seed=0, ties=False):
    weights = {n: 4.0**i * p for i, (n, p) in enumerate(normal(seed, **SHAPES).items())}
    return jax.tree.map(lambda p: jnp.round(2 * p) / 2, weights) if ties else weights


def numpy_lamp(scores):
    """One weight at a time: its square, over the squares that rank no lower."""
    flat = np.asarray(scores, np.float64).ravel()
    rescaled = np.zeros(flat.size)
    for u in range(flat.size):
        rivals = [v for v in range(flat.size) if (flat[v], -v) >= (flat[u], -u)]
        total = sum(flat[v] ** 2 for v in rivals)
        rescaled[u] = flat[u] ** 2 / total if flat[u] else 0.0
    return rescaled.reshape(np.shape(scores))


@pytest.mark.parametrize("ties", [False, True])
def test_equals_its_definition(ties):
    scores = jp.magnitude(weights_of(ties=ties))
    for name, rescaled in jp.lamp(scores).items():
        np.testing.assert_allclose(rescaled, numpy_lamp(scores[name]), rtol=1e-5)
        assert np.max(rescaled) == 1  # Exactly: the last of its leaf to go.


@pytest.mark.parametrize("seed", range(3))
def test_a_global_mask_of_it_is_the_greedy_choice(seed):
    """Remove, time and again, what adds least to its layer's relative error."""
    weights = weights_of(seed)
    left = {n: np.asarray(p, np.float64).ravel() ** 2 for n, p in weights.items()}
    alive = {n: np.ones(s.size, bool) for n, s in left.items()}
    for _ in range(round(0.7 * 56)):
        error = {
            (s[i] / s[alive[n]].sum(), n, i)
            for n, s in left.items()
            for i in np.flatnonzero(alive[n])
        }
        _, name, i = min(error)
        alive[name][i] = False
    mask = jp.global_mask(jp.lamp(jp.magnitude(weights)), 0.7)
    for name, shape in SHAPES.items():
        np.testing.assert_array_equal(mask[name], alive[name].reshape(shape))


def test_layers_of_any_scale_share_one_threshold():
    weights = normal(1, a=(8, 4), b=(8, 4))
    scaled = {"a": weights["a"], "b": 1e-12 * weights["b"]}
    assert not jp.global_mask(jp.magnitude(scaled), 0.5)["b"].any()
    tiny = jp.lamp(jp.magnitude(scaled))  # Squares of 1e-24 would lose their digits.
    for name, rescaled in jp.lamp(jp.magnitude(weights)).items():
        np.testing.assert_allclose(tiny[name], rescaled, rtol=1e-4)


def test_equal_scores_go_from_the_last_and_a_leaf_of_zeros_scores_zero():
    scores = {"a": jnp.full((2, 2), 3.0), "b": jnp.zeros((2, 2))}
    rescaled = jp.lamp(scores)
    np.testing.assert_allclose(rescaled["a"], [[1, 1 / 2], [1 / 3, 1 / 4]], rtol=1e-6)
    np.testing.assert_array_equal(rescaled["b"], 0)


def test_what_is_not_finite_stays_and_does_not_count():
    scores = {"w": jnp.array([[3.0, jnp.inf, jnp.nan, 4.0, -jnp.inf, -1.0]])}
    rescaled = jp.lamp(scores)["w"]
    expected = [[9 / 25, np.inf, np.nan, 1.0, -np.inf, 0.0]]
    np.testing.assert_allclose(rescaled, expected, rtol=1e-6)


def test_half_precision_is_rescaled_in_float32():
    scores = {"w": normal(2, w=(8, 4))["w"].astype(jnp.bfloat16)}
    scores = jax.tree.map(jnp.abs, scores)
    rescaled = jp.lamp(scores)["w"]
    assert rescaled.dtype == jnp.float32
    np.testing.assert_allclose(rescaled, numpy_lamp(scores["w"]), rtol=1e-5)


def test_float64_scores_stay_whole():
    with jax.enable_x64(True):
        scores = {"w": jnp.abs(normal(3, jnp.float64, w=(4, 4))["w"])}
    rescaled = jp.lamp(scores)["w"]
    assert rescaled.dtype == np.float64
    np.testing.assert_allclose(rescaled, numpy_lamp(scores["w"]), rtol=1e-13)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_rescaled_scores_lie_where_the_scores_lay(axis_type, wrap):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    scores = jp.magnitude(normal(4, a=(8, 4), b=(3, 4, 2)))
    layout = {"a": P("x", "y"), "b": P(None, "x", "y")}
    sharded = {
        n: jax.device_put(s, NamedSharding(mesh, layout[n])) for n, s in scores.items()
    }
    expected = jp.lamp(scores)
    for name, rescaled in wrap(jp.lamp)(sharded).items():
        assert rescaled.sharding.is_equivalent_to(sharded[name].sharding, rescaled.ndim)
        np.testing.assert_allclose(rescaled, expected[name], rtol=1e-6)
