"""The gradient flow against an explicit Hessian and the theory's identities, in x64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

HIDDEN = 6


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def data(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, 5))), jnp.asarray(rng.normal(size=(n, 2)))


def make_params(seed=1):
    rng = np.random.default_rng(seed)
    shapes = {"in": (5, HIDDEN), "bias": (HIDDEN,), "out": (HIDDEN, 2)}
    return {k: jnp.asarray(0.7 * rng.normal(size=s)) for k, s in shapes.items()}


def mlp_loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["in"] + params["bias"][None])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def normalised_loss(params, batch):
    """A unit followed by batch normalisation over the batch (train mode, ε = 0)."""
    x, y = batch
    z = x @ params["in"]
    z = (z - jnp.mean(z, 0)[None]) / jnp.std(z, 0)[None]
    return jnp.mean((jax.nn.softplus(z) @ params["out"] - y) ** 2)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_the_flow_is_that_of_an_explicit_hessian():
    params, batch = make_params(), data()
    leaves, structure = jax.tree.flatten(params)
    cuts = np.cumsum([p.size for p in leaves])[:-1]

    def of_vector(v):
        parts = jnp.split(v, cuts)
        shaped = [q.reshape(p.shape) for q, p in zip(parts, leaves, strict=True)]
        return mlp_loss(jax.tree.unflatten(structure, shaped), batch)

    theta = jnp.asarray(flat(params))
    g, h = jax.grad(of_vector)(theta), jax.hessian(of_vector)(theta)
    flow = jax.jit(jp.gradient_flow(mlp_loss))(params, batch)
    np.testing.assert_allclose(flat(flow.params), theta)
    np.testing.assert_allclose(flat(flow.gradient), g, rtol=1e-10)
    np.testing.assert_allclose(
        flat(flow.hessian_gradient), h @ g, rtol=1e-8, atol=1e-12
    )
    np.testing.assert_allclose(flat(flow.squared_gradient), g**2, rtol=1e-10)


def test_order_one_is_the_same_without_hg():
    params, batch = make_params(), data()
    one = jp.gradient_flow(mlp_loss, order=1)(params, batch)
    two = jp.gradient_flow(mlp_loss)(params, batch)
    assert one.hessian_gradient is None
    np.testing.assert_allclose(flat(one.gradient), flat(two.gradient), rtol=1e-12)


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [6, 4, 2], [1] * 12])
def test_mean_flow_is_the_flow_of_the_whole_stream(sizes):
    params, (x, y) = make_params(), data()
    cuts = np.cumsum(sizes)[:-1]
    batches = list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))
    flow = jp.mean_flow(mlp_loss, params, batches)
    full = jp.gradient_flow(mlp_loss)(params, (x, y))
    np.testing.assert_allclose(flat(flow.gradient), flat(full.gradient), rtol=1e-6)
    np.testing.assert_allclose(
        flat(flow.hessian_gradient), flat(full.hessian_gradient), rtol=1e-5, atol=1e-9
    )
    squares = sum(
        n / 12 * flat(jax.grad(mlp_loss)(params, b)) ** 2
        for n, b in zip(sizes, batches, strict=True)
    )
    np.testing.assert_allclose(flat(flow.squared_gradient), squares, rtol=1e-6)


def test_mean_flow_compiles_once_a_batch_shape_even_over_calls():
    traces = []

    def loss(params, batch):
        traces.append(None)
        return mlp_loss(params, batch)

    batches = [data(4, seed) for seed in range(5)]
    jp.mean_flow(loss, make_params(), batches)
    once = len(traces)
    jp.mean_flow(loss, make_params(2), batches * 3)
    assert len(traces) == once


def test_mean_flow_forgets_a_loss_that_is_gone():
    import gc
    import weakref

    def loss(params, batch):
        return mlp_loss(params, batch)

    jp.mean_flow(loss, make_params(), [data()])
    gone = weakref.ref(loss)
    del loss
    gc.collect()
    assert gone() is None


def test_a_second_reading_that_differs_is_refused():
    class Shrinking:
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter([data()] * (3 - self.reads))

    with pytest.raises(ValueError, match="the same"):
        jp.mean_flow(mlp_loss, make_params(), Shrinking())


@functools.partial(jax.jit, static_argnums=(0, 4))
def evolved(loss, params, batch, time, steps):
    """Runge-Kutta 4 along dθ/dt = -g."""
    gradient, step = jax.grad(loss), time / steps

    def moved(p, k, by):
        return jax.tree.map(lambda a, b: a - by * b, p, k)

    def one(_, params):
        k1 = gradient(params, batch)
        k2 = gradient(moved(params, k1, step / 2), batch)
        k3 = gradient(moved(params, k2, step / 2), batch)
        k4 = gradient(moved(params, k3, step), batch)
        slope = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in _leaves(k1, k2, k3, k4)]
        return moved(
            params, jax.tree.unflatten(jax.tree.structure(params), slope), step
        )

    return jax.lax.fori_loop(0, steps, one, params)


def _leaves(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def quantities(loss, params, batch):
    gradient = jax.grad(loss)(params, batch)
    return np.array(
        [np.sum(flat(params) ** 2), loss(params, batch), np.sum(flat(gradient) ** 2)]
    )


@pytest.mark.parametrize("loss", [mlp_loss, normalised_loss])
def test_rates_are_the_derivatives_along_the_flow(loss):
    """Identities 1 to 4: d|θ|², d²|θ|², dL and d|g|², by differences in time."""
    params, batch = make_params(), data()
    h = 1e-3
    rates = jp.flow_rates(jp.gradient_flow(loss)(params, batch))
    before, now, after = (
        quantities(loss, evolved(loss, params, batch, t, 4), batch)
        for t in (-h, 0.0, h)
    )
    first = (after - before) / (2 * h)
    second = (after - 2 * now + before) / h**2
    np.testing.assert_allclose(rates.squared_norm.total, first[0], rtol=1e-4)
    np.testing.assert_allclose(rates.loss.total, first[1], rtol=1e-4)
    np.testing.assert_allclose(rates.squared_gradient.total, first[2], rtol=1e-3)
    np.testing.assert_allclose(rates.squared_norm_second.total, second[0], rtol=1e-3)
    np.testing.assert_allclose(second[1], -rates.squared_gradient.total, rtol=1e-2)
    for rate in rates:
        np.testing.assert_allclose(np.sum(flat(rate.leaves)), rate.total, rtol=1e-10)


def test_rates_of_order_one_leave_out_what_needs_curvature():
    rates = jp.flow_rates(jp.gradient_flow(mlp_loss, order=1)(make_params(), data()))
    assert rates.squared_gradient is None
    assert rates.squared_norm_second is None
    assert float(rates.loss.total) < 0


@pytest.mark.parametrize("index", range(5))
def test_removal_changes_loss_and_gradient_norm_as_the_scores_say(index):
    """Identity 5, for a weight scaled by 1 - ε: first order in ε."""
    params, batch = make_params(), data()
    flow = jp.gradient_flow(mlp_loss)(params, batch)
    epsilon = 1e-6
    position = (index, index % HIDDEN)
    shrunk = params | {"in": params["in"].at[position].multiply(1 - epsilon)}
    change = quantities(mlp_loss, shrunk, batch) - quantities(mlp_loss, params, batch)
    taylor = jp.measures.taylor(flow)["in"][position]
    grasp = jp.measures.grasp(flow)["in"][position]
    np.testing.assert_allclose(change[1] / epsilon, -taylor, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(change[2] / epsilon, -2 * grasp, rtol=1e-3, atol=1e-8)


def test_displacement_is_bounded_by_the_contribution_to_the_loss():
    """Identity 6: (θ(t) - θ(0))² <= t ∫ g², and the shares add up to the fall."""
    start, batch = make_params(), data()
    time, steps = 0.5, 100
    gradient = jax.jit(jax.grad(mlp_loss))
    params, g = start, gradient(start, batch)
    contribution = np.zeros(flat(start).shape)
    for _ in range(steps):
        params = evolved(mlp_loss, params, batch, time / steps, 1)
        later = gradient(params, batch)
        contribution += time / steps * (flat(g) ** 2 + flat(later) ** 2) / 2
        g = later
    fall = mlp_loss(start, batch) - mlp_loss(params, batch)
    np.testing.assert_allclose(np.sum(contribution), fall, rtol=1e-3)
    moved = (flat(params) - flat(start)) ** 2
    assert (moved <= time * contribution * (1 + 1e-6)).all()


def test_batch_normalised_filters_are_scale_free():
    """Identity 7, per unit before normalisation: θᵀg = 0 and θᵀHg = -|g|²."""
    params, batch = make_params(), data()
    flow = jp.gradient_flow(normalised_loss)(params, batch)
    taylor = np.sum(jp.measures.taylor(flow)["in"], axis=0)
    grasp = np.sum(jp.measures.grasp(flow)["in"], axis=0)
    squares = np.sum(flow.squared_gradient["in"], axis=0)
    np.testing.assert_allclose(taylor, 0, atol=1e-12)
    # Hg mixes units; its own unit's part is -|g|², so sum what a unit's scale sees.
    hessian_own = np.array([_own_curvature(params, batch, j) for j in range(HIDDEN)])
    np.testing.assert_allclose(hessian_own, -squares, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(grasp, -squares, rtol=1e-6, atol=1e-12)


def _own_curvature(params, batch, unit):
    """d/ds of w·∂L/∂w(w + s g) for one unit's weights w, by central differences."""
    g = jax.grad(normalised_loss)(params, batch)

    def projected(s):
        moved = jax.tree.map(lambda p, q: p + s * q, params, g)
        gradient = jax.grad(normalised_loss)(moved, batch)["in"][:, unit]
        return jnp.vdot(params["in"][:, unit], gradient)

    return float(projected(1e-5) - projected(-1e-5)) / 2e-5


def test_bias_free_relu_layers_share_one_rate():
    """Identity 8: θᵀg is the same number in every layer of a bias-free ReLU net."""
    rng = np.random.default_rng(3)
    params = [jnp.asarray(rng.normal(size=s)) for s in ((5, 9), (9, 7), (7, 2))]

    def loss(params, batch):
        x, y = batch
        for w in params[:-1]:
            x = jax.nn.relu(x @ w)
        return jnp.mean((x @ params[-1] - y) ** 2)

    rates = jp.flow_rates(jp.gradient_flow(loss, order=1)(params, data()))
    shares = np.array(rates.squared_norm.leaves)
    assert abs(shares[0]) > 1e-3
    np.testing.assert_allclose(shares, shares[0], rtol=1e-10)


def test_biased_loss_by_distance_from_initialisation():
    params, batch = make_params(), data()
    flow = jp.gradient_flow(mlp_loss, order=1)(params, batch)
    origin = jax.tree.map(lambda p: 0.5 * p, params)
    plain, moved = (
        jp.measures.biased_loss(flow),
        jp.measures.biased_loss(flow, origin=origin),
    )
    np.testing.assert_allclose(flat(moved), 0.5 * flat(plain), rtol=1e-10)


def test_grasp_raises_the_gradient_norm_and_preservation_changes_it_least():
    """A small prune of filters of units, by the four measures (acceptance test d)."""
    params, batch = make_params(), data(64)
    flow = jp.gradient_flow(mlp_loss)(params, batch)

    def norm_after(measure):
        mask = jp.global_mask(measure(flow), 0.05)
        shrunk = jax.tree.map(lambda p, m: jnp.where(m, p, 0.98 * p), params, mask)
        return quantities(mlp_loss, shrunk, batch)[2]

    norm = quantities(mlp_loss, params, batch)[2]
    change = {
        m.__name__: norm_after(m) - norm
        for m in (
            jp.measures.magnitude,
            jp.measures.loss_preservation,
            jp.measures.grasp,
            jp.measures.gradient_preservation,
        )
    }
    assert change["grasp"] > 0
    least = min(change, key=lambda name: abs(change[name]))
    assert least == "gradient_preservation"
