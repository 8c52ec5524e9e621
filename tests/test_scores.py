"""Score functions: what each promises, as one table, against numerical derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import normal, numpy_global_mask

X = jax.random.normal(jax.random.key(7), (16, 8))
Y = jax.random.normal(jax.random.key(8), (16, 4))


def apply_fn(params, x):
    hidden = jnp.tanh(x @ params["in"] + params["bias"][None])
    return hidden @ params["out"]


def relu_fn(params, x):
    return jax.nn.relu(x @ params["in"] + params["bias"][None]) @ params["out"]


def loss_fn(params, x, y):
    return jnp.mean((apply_fn(params, x) - y) ** 2)


def _twice(*batch):
    """The batch two times over, for the steps that a score takes by itself."""
    return tuple(jnp.stack([b, b]) for b in batch)


def make_params(dtype=jnp.float32, seed=0):
    shapes = {"in": (8, 16), "bias": (16,), "out": (16, 4)}
    return jax.tree.map(lambda p: (0.5 * p).astype(dtype), normal(seed, **shapes))


# A new score is one line here and inherits every test below.
SCORES = {
    "magnitude": jp.magnitude,
    "random": jp.random(jax.random.key(0)),
    "snip": jp.snip(loss_fn),
    "biased_loss": jp.biased_loss(loss_fn),
    "grasp": jp.grasp(loss_fn),
    "gradient_preservation": jp.gradient_preservation(loss_fn),
    "fisher": jp.fisher(loss_fn),
    "drive": jp.drive(loss_fn),
    "drive, mean": jp.drive(loss_fn, normalize="mean", weights=(1, 0, 2)),
    "drive, rank": jp.drive(loss_fn, normalize="rank"),
    "drive, product": jp.drive(loss_fn, combine="product"),
    "prospr": lambda p, x, y: jp.prospr(loss_fn)(p, _twice(x, y), x, y),
    "lamp": lambda p, *_: jp.lamp(jp.magnitude(p)),
    "wanda": lambda p, x, y: jp.wanda(relu_fn)(p, x),
    "synflow": lambda p, x, y: jp.synflow(relu_fn)(p, x),
    "synflow, float64": lambda p, x, y: jp.synflow(relu_fn, dtype=jnp.float64)(p, x),
}
SIGNED = {"grasp"}
BLIND = {"random"}  # Does not look at the weights.
each_score = pytest.mark.parametrize("name", SCORES)


@each_score
def test_like_params_finite_and_not_negative_unless_signed(name):
    params = make_params()
    scores = SCORES[name](params, X, Y)
    chex.assert_trees_all_equal_shapes(scores, params)
    for leaf in jax.tree.leaves(scores):
        assert leaf.dtype in (np.float32, np.float64)
        assert np.isfinite(leaf).all()
        assert name in SIGNED or (np.asarray(leaf) >= 0).all()


@each_score
def test_jit_is_eager_and_traces_once(name):
    params = make_params()
    jitted = jax.jit(chex.assert_max_traces(SCORES[name], n=1))
    for seed in range(3):
        params = make_params(seed=seed)
        chex.assert_trees_all_close(
            jitted(params, X, Y), SCORES[name](params, X, Y), rtol=1e-4, atol=1e-6
        )


@each_score
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_weights_get_wide_scores(name, dtype):
    params = make_params(dtype)
    scores = SCORES[name](params, X.astype(dtype), Y.astype(dtype))
    wide = SCORES[name](jax.tree.map(lambda p: p.astype(jnp.float32), params), X, Y)
    for half, full in zip(jax.tree.leaves(scores), jax.tree.leaves(wide), strict=True):
        assert half.dtype in (np.float32, np.float64)
        half, full = np.asarray(half, np.float64), np.asarray(full, np.float64)
        assert np.abs(half - full).max() < 0.1 * np.abs(full).max()


@each_score
@pytest.mark.parametrize("seed", range(3))
def test_permuting_hidden_units_permutes_scores(name, seed):
    if name in BLIND:
        return
    order = np.random.default_rng(seed).permutation(16)

    def permuted(tree):
        return {
            "in": tree["in"][:, order],
            "bias": tree["bias"][order],
            "out": tree["out"][order],
        }

    params = make_params(seed=seed)
    chex.assert_trees_all_close(
        SCORES[name](permuted(params), X, Y),
        permuted(SCORES[name](params, X, Y)),
        rtol=1e-4,
        atol=1e-6,
    )


@each_score
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharding_is_kept(name, axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    specs = {"in": P(None, "x"), "bias": P("x"), "out": P("x", None)}
    params = {
        k: jax.device_put(v, NamedSharding(mesh, specs[k]))
        for k, v in make_params().items()
    }
    batch = [jax.device_put(a, NamedSharding(mesh, P("y"))) for a in (X, Y)]
    if axis_type == AxisType.Explicit:
        # The model's own products contract sharded axes: such a model says where to.
        params = jax.device_put(make_params(), NamedSharding(mesh, P()))
    scores = jax.jit(SCORES[name])(params, *batch)
    for s, p in zip(jax.tree.leaves(scores), jax.tree.leaves(params), strict=True):
        assert s.sharding.is_equivalent_to(p.sharding, p.ndim), name
    chex.assert_trees_all_close(
        scores, SCORES[name](make_params(), X, Y), rtol=1e-4, atol=1e-6
    )


@each_score
def test_strict_promotion(name):
    with jax.numpy_dtype_promotion("strict"):
        SCORES[name](make_params(), X, Y)


def numerical_gradient(fn, params, step=1e-4):
    """Central differences in float64, one weight at a time."""

    def shifted(name, index, by):
        moved = {k: np.array(v) for k, v in params.items()}
        moved[name][index] += by
        return fn(moved)

    return {
        name: np.vectorize(lambda *_: 0.0)(value)
        + np.array(
            [
                (shifted(name, i, step) - shifted(name, i, -step)) / (2 * step)
                for i in np.ndindex(value.shape)
            ]
        ).reshape(value.shape)
        for name, value in params.items()
    }


def numpy_loss(params):
    hidden = np.tanh(np.asarray(X, np.float64) @ params["in"] + params["bias"])
    return np.mean((hidden @ params["out"] - np.asarray(Y, np.float64)) ** 2)


@pytest.fixture(scope="module")
def reference():
    """θ, g and Hg of a NumPy loss by differences of it, and of its differences."""
    theta = {k: np.asarray(v, np.float64) for k, v in make_params().items()}
    g = numerical_gradient(numpy_loss, theta)
    step = 1e-3

    def along(sign):
        moved = {k: theta[k] + sign * step * g[k] for k in theta}
        return numerical_gradient(numpy_loss, moved)

    plus, minus = along(1), along(-1)
    hg = {k: (plus[k] - minus[k]) / (2 * step) for k in theta}
    return theta, g, hg


CLOSED_FORMS = {
    "magnitude": lambda t, g, h: np.abs(t),
    "snip": lambda t, g, h: np.abs(t * g),
    "biased_loss": lambda t, g, h: t**2 * np.abs(g),
    "grasp": lambda t, g, h: t * h,
    "gradient_preservation": lambda t, g, h: np.abs(t * h),
    "fisher": lambda t, g, h: t**2 * g**2,
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_equals_its_formula_by_numerical_derivatives(name, reference):
    scores = SCORES[name](make_params(), X, Y)
    for k, score in scores.items():
        expected = CLOSED_FORMS[name](*[tree[k] for tree in reference])
        np.testing.assert_allclose(score, expected, rtol=2e-3, atol=2e-5, err_msg=k)


NORMALIZED = {
    "sum": lambda x, pool: x / np.sum(pool),
    "mean": lambda x, pool: x / np.mean(pool),
    "rank": lambda x, pool: np.mean(x[..., None] >= pool, axis=-1),
    "none": lambda x, pool: x,
}


def numpy_drive(theta, g, weights, normalize, combine):
    """In float64, over the entries of "in" and "out" that are not 0."""
    alive = np.concatenate([theta[k].ravel() != 0 for k in ("in", "out")])
    terms = [
        {k: np.abs(theta[k]) for k in theta},
        {k: np.abs(theta[k] * g[k]) for k in theta},
        {k: np.abs(g[k]) for k in theta},
    ]
    scores = {k: np.zeros if combine == "sum" else np.ones for k in theta}
    scores = {k: make(theta[k].shape) for k, make in scores.items()}
    for weight, term in zip(weights, terms, strict=True):
        pool = np.concatenate([term[k].ravel() for k in ("in", "out")])[alive]
        for k in theta:
            x = NORMALIZED[normalize](term[k], pool)
            if combine == "sum":
                scores[k] = scores[k] + weight * x
            else:
                scores[k] = scores[k] * x ** (weight / sum(weights))
    return scores


@pytest.mark.parametrize("combine", ["sum", "product"])
@pytest.mark.parametrize("weights", [(1, 2, 0.5), (0, 1, 1), (0, 0, 3)])
@pytest.mark.parametrize("normalize", NORMALIZED)
def test_drive_is_its_three_terms(normalize, weights, combine, reference):
    theta, g, _ = reference
    score = jp.drive(loss_fn, weights=weights, normalize=normalize, combine=combine)
    scores = score(make_params(), X, Y)
    if normalize == "rank":  # Differences of the loss would swap near neighbours.
        gradient = jax.grad(loss_fn)(make_params(), X, Y)
        for k in g:
            np.testing.assert_allclose(gradient[k], g[k], rtol=2e-3, atol=1e-6)
        theta, g = (
            {k: np.asarray(v, np.float64) for k, v in tree.items()}
            for tree in (make_params(), gradient)
        )
    expected = numpy_drive(theta, g, weights, normalize, combine)
    # Two float32 products may round to a tie, or trade places: one rank in 192.
    atol = 1.01 * sum(weights) / 192 if normalize == "rank" else 1e-6
    for k in theta:
        np.testing.assert_allclose(scores[k], expected[k], rtol=2e-3, atol=atol)


@pytest.mark.parametrize("combine", ["sum", "product"])
@pytest.mark.parametrize("normalize", NORMALIZED)
def test_drive_in_rounds_normalises_over_what_is_left(normalize, combine):
    params, rounds = make_params(), 4
    weights = (1, 1, 2)
    score = jp.drive(loss_fn, weights=weights, normalize=normalize, combine=combine)
    mask = {k: np.ones(p.shape, bool) for k, p in params.items()}
    for r in range(1, rounds + 1):
        masked = {k: np.where(mask[k], params[k], 0) for k in params}
        g = jax.grad(loss_fn)({k: jnp.asarray(v) for k, v in masked.items()}, X, Y)
        g = {k: np.asarray(v, np.float64) for k, v in g.items()}
        masked = {k: np.asarray(v, np.float64) for k, v in masked.items()}
        scores = numpy_drive(masked, g, weights, normalize, combine)
        new = numpy_global_mask(
            [scores[k] for k in ("in", "out")],
            round((1 - 0.1 ** (r / rounds)) * 192),
            [mask[k] for k in ("in", "out")],
        )
        mask |= dict(zip(("in", "out"), new, strict=True))
    ours = jp.iterative_mask(score, params, X, Y, sparsity=0.9, rounds=rounds)
    chex.assert_trees_all_equal(ours, mask)


def test_drive_normalises_over_the_survivors():
    flow = jp.Flow(
        {"w": jnp.array([[1.0, 0.0, 3.0]])},
        {"w": jnp.array([[1.0, 5.0, 3.0]])},
        None,
        None,
    )
    for normalize, expected in {
        "sum": [0.25, 1.25, 0.75],
        "mean": [0.5, 2.5, 1.5],
        "rank": [0.5, 1.0, 1.0],
        "none": [1.0, 5.0, 3.0],
    }.items():
        scores = jp.measures.drive(flow, weights=(0, 0, 1), normalize=normalize)
        np.testing.assert_allclose(scores["w"], [expected])


@pytest.mark.parametrize("normalize", NORMALIZED)
@pytest.mark.parametrize("combine", ["sum", "product"])
def test_drive_hands_on_what_is_not_a_number(normalize, combine):
    w = jnp.array([[1.0, 2.0, 3.0]])
    bad = jp.Flow({"w": w}, {"w": w.at[0, 1].set(jnp.nan)}, None, None)
    scores = jp.measures.drive(bad, normalize=normalize, combine=combine)["w"]
    assert jnp.isnan(scores[0, 1])


def test_drive_as_a_product_survives_terms_whose_product_would_not():
    flow = jp.Flow(
        {"w": jnp.array([[2e-10, 1e-10]])},
        {"w": jnp.array([[1e-12, 1e-12]])},
        None,
        None,
    )
    scores = jp.measures.drive(flow, normalize="none", combine="product")["w"]
    expected = np.cbrt([[4e-44, 1e-44]])  # In float32 both products are 0.
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_removing_the_least_snip_score_changes_the_loss_least_to_first_order():
    params = make_params()
    scores = jp.snip(loss_fn)(params, X, Y)
    gradient = jax.grad(loss_fn)(params, X, Y)
    mask = jp.global_mask(scores, 0.2)
    first_order = sum(
        np.sum(np.abs(np.asarray(p * g))[~np.asarray(m)])
        for p, g, m in zip(*map(jax.tree.leaves, (params, gradient, mask)), strict=True)
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        noise = {
            k: jnp.asarray(rng.random(v.shape), jnp.float32) for k, v in params.items()
        }
        other = jp.global_mask(noise, 0.2)
        change = sum(
            np.sum(np.abs(np.asarray(p * g))[~np.asarray(m)])
            for p, g, m in zip(
                *map(jax.tree.leaves, (params, gradient, other)), strict=True
            )
        )
        assert first_order < change


def relu_net(params, x):
    for name in ("a", "b", "c"):
        x = jax.nn.relu(x @ params[name])
    return x


def test_synflow_is_conserved_from_layer_to_layer():
    """Tanaka et al., Theorem 1: every layer of a ReLU net without biases sums to R."""
    params = normal(a=(5, 9), b=(9, 7), c=(7, 3))
    scores = jp.synflow(relu_net)(params, jnp.zeros((1, 5)))
    product = np.ones((1, 5))
    for name in ("a", "b", "c"):
        product = product @ np.abs(np.asarray(params[name], np.float64))
    for name in ("a", "b", "c"):
        np.testing.assert_allclose(np.sum(scores[name]), product.sum(), rtol=1e-5)


def test_synflow_in_float64_survives_fifty_layers():
    def deep(params, x):
        for w in params:
            x = jax.nn.relu(x @ w)
        return x

    params = [
        20 * w for w in normal(**{f"w{i:02}": (16, 16) for i in range(50)}).values()
    ]
    x = jnp.ones((1, 16))
    assert not np.isfinite(jp.synflow(deep)(params, x)[0]).all()
    score = jax.jit(jp.synflow(deep, dtype=jnp.float64))
    scores = score(params, x)
    assert all(
        np.isfinite(np.asarray(s)).all() and s.dtype == np.float64 for s in scores
    )
    mask = jp.global_mask(scores, 0.5)
    assert sum(int(m.sum()) for m in mask) == 50 * 128
    sums = [np.asarray(s).sum() for s in scores]
    np.testing.assert_allclose(sums, sums[0])


def test_synflow_passes_tokens_on():
    def embed(params, tokens):
        return params["table"][tokens] @ params["head"]

    params = normal(table=(7, 4), head=(4, 2))
    scores = jp.synflow(embed)(params, jnp.array([1, 3]))
    used = np.asarray(scores["table"]).sum(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(used), [1, 3])


def test_random_does_not_repeat_itself_from_leaf_to_leaf():
    scores = jp.random(jax.random.key(0))(
        {"a": jnp.zeros((50,)), "b": jnp.zeros((50,))}
    )
    assert not np.allclose(scores["a"], scores["b"])
    assert 0.3 < float(jnp.mean(scores["a"])) < 0.7


# prospr


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_prospr_of_a_quadratic_is_its_closed_form(steps):
    # L = |B w - t|²/2, so each step is linear: dL/dw_0 = Π (1 - η BᵀB) g(w_M).
    rng = np.random.default_rng(0)
    factors, targets = (
        rng.normal(size=(steps + 1, 6, 5)),
        rng.normal(size=(steps + 1, 6)),
    )
    start, rate = rng.normal(size=5), 0.05
    weights, transport = start, np.eye(5)
    for factor, target in zip(factors[:steps], targets[:steps], strict=True):
        weights = weights - rate * factor.T @ (factor @ weights - target)
        transport = (np.eye(5) - rate * factor.T @ factor) @ transport
    last = factors[steps].T @ (factors[steps] @ weights - targets[steps])
    expected = np.abs(start * (transport.T @ last))

    def loss(params, factor, target):
        return jnp.sum((factor @ params["w"] - target) ** 2) / 2

    factors, targets = jnp.float32(factors), jnp.float32(targets)
    score = jax.jit(jp.prospr(loss, learning_rate=rate))
    scores = score(
        {"w": jnp.float32(start)},
        (factors[:steps], targets[:steps]),
        factors[steps],
        targets[steps],
    )
    np.testing.assert_allclose(scores["w"], expected, rtol=1e-4, atol=1e-6)
    if steps == 0:
        snip = jp.snip(loss)({"w": jnp.float32(start)}, factors[0], targets[0])
        np.testing.assert_allclose(scores["w"], snip["w"], rtol=1e-6)


def test_prospr_differs_from_snip_and_keeps_one_step_in_memory():
    params = make_params()
    assert not np.allclose(
        SCORES["prospr"](params, X, Y)["in"], SCORES["snip"](params, X, Y)["in"]
    )
    jaxpr = str(jax.make_jaxpr(jp.prospr(loss_fn))(params, _twice(X, Y), X, Y))
    assert "checkpoint" in jaxpr or "remat" in jaxpr
