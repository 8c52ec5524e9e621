"""pmap and shard_map: on parts of a batch, what the whole batch gives on one device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import MASK, PARAMS, QUICK, assert_pruned_are_zero, normal
from tests.test_transforms import LINKS

X = jax.random.normal(jax.random.key(7), (16, 8))
Y = jax.random.normal(jax.random.key(8), (16, 4))
MODEL = jax.tree.map(lambda p: 0.3 * p, normal(0, **{"in": (8, 16), "out": (16, 4)}))
DEVICES = 4


def apply_fn(params, x):
    return jax.nn.softplus(x @ params["in"]) @ params["out"]


def loss_fn(params, x, y):
    return jnp.mean((apply_fn(params, x) - y) ** 2)


def _half(params):
    return jp.layerwise_mask(jp.magnitude(params), 0.5)


def _prospr(axis_name):
    score = jp.prospr(loss_fn, axis_name=axis_name)
    return lambda p, x, y: score(p, (jnp.stack([x, -x]), jnp.stack([y, y])), x, y)


def _wanda(axis_name):
    def score(params, x, y):
        scores = jp.wanda(apply_fn)(params, x)
        if axis_name is None:
            return scores
        # Norms over the examples: their squares add up.
        return jax.tree.map(lambda s: jnp.sqrt(jax.lax.psum(s**2, axis_name)), scores)

    return score


def _synflow(_):
    # It reads no data: an input of one example, the same on every device, will do.
    return lambda p, x, y: jp.synflow(apply_fn)(p, jnp.zeros((1, 8)))


# A new score, or a mask found by scoring, is one line here: a function of axis_name.
SCORES = {
    "magnitude": lambda _: jp.magnitude,
    "random": lambda _: jp.random(jax.random.key(0)),
    "snip": lambda axis: jp.snip(loss_fn, axis_name=axis),
    "snip, straight through": lambda axis: jp.snip(
        jp.forward_sparse(loss_fn, _half, decay=0.1), axis_name=axis
    ),
    "biased_loss": lambda axis: jp.biased_loss(loss_fn, axis_name=axis),
    "grasp": lambda axis: jp.grasp(loss_fn, axis_name=axis),
    "gradient_preservation": lambda axis: jp.gradient_preservation(
        loss_fn, axis_name=axis
    ),
    "fisher": lambda axis: jp.fisher(loss_fn, axis_name=axis),
    "drive": lambda axis: jp.drive(loss_fn, axis_name=axis),
    "drive, rank": lambda axis: jp.drive(loss_fn, normalize="rank", axis_name=axis),
    "lamp of snip": lambda axis: (
        lambda p, *batch: jp.lamp(jp.snip(loss_fn, axis_name=axis)(p, *batch))
    ),
    "prospr": _prospr,
    "synflow": _synflow,
    "wanda": _wanda,
    "gradient_flow": lambda axis: jp.gradient_flow(loss_fn, axis_name=axis),
    "iterative_mask": lambda axis: (
        lambda p, *batch: jp.iterative_mask(
            jp.snip(loss_fn, axis_name=axis), p, *batch, sparsity=0.8, rounds=2
        )
    ),
    "force_mask": lambda axis: (
        lambda p, *batch: jp.force_mask(
            loss_fn, p, *batch, sparsity=0.8, rounds=2, axis_name=axis
        )
    ),
}


def _all_scores(axis_name):
    """Every row of the table in one function, to be compiled once."""
    functions = {name: make(axis_name) for name, make in SCORES.items()}
    return lambda p, x, y: {name: fn(p, x, y) for name, fn in functions.items()}


def test_scores_of_parts_of_a_batch_are_the_whole_batchs():
    whole = jax.jit(_all_scores(None), compiler_options=QUICK)
    expected = jax.device_get(whole(MODEL, X, Y))

    mesh = jax.make_mesh((DEVICES,), ("d",))
    mapped = jax.shard_map(
        _all_scores("d"), mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P()
    )
    x, y = (jax.device_put(a, NamedSharding(mesh, P("d"))) for a in (X, Y))
    params = jax.device_put(MODEL, NamedSharding(mesh, P()))
    ours = jax.jit(mapped, compiler_options=QUICK)(params, x, y)
    chex.assert_trees_all_close(jax.device_get(ours), expected, rtol=1e-4, atol=1e-6)

    x, y = (a.reshape(DEVICES, -1, *a.shape[1:]) for a in (X, Y))
    mapped = jax.pmap(_all_scores("d"), axis_name="d", in_axes=(None, 0, 0))
    compiled = mapped.lower(MODEL, x, y).compile(compiler_options=QUICK)
    lanes = jax.device_get(compiled(MODEL, x, y))
    for i in range(DEVICES):
        ours = jax.tree.map(lambda leaf, i=i: leaf[i], lanes)
        chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-6)

    # Without the axis a device scores its own examples: an average that is left out
    # would be seen above.
    alone = jax.pmap(jp.snip(loss_fn), in_axes=(None, 0, 0))(MODEL, x, y)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf: leaf[0], alone), expected["snip"], rtol=1e-2
        )


# Training: the gradient is averaged, and the transforms need to know of nothing.

DATA = jax.random.normal(jax.random.key(9), (8, 4))


def _training_steps(transforms, axis_name):
    def loss(params, x):
        return jnp.mean((x @ params["kernel"] @ params["head"] - 1.0) ** 2)

    def step(params, states, x):
        for name, tx in transforms.items():
            gradient = jax.grad(loss)(params[name], x)
            if axis_name is not None:
                gradient = jax.lax.pmean(gradient, axis_name)
            updates, state = tx.update(gradient, states[name], params[name])
            params |= {name: optax.apply_updates(params[name], updates)}
            states |= {name: state}
        return params, states

    return step


def test_data_parallel_pmap_trains_as_one_device_does():
    """Five steps of every transform, on four devices and on one, each compiled once."""
    transforms = {name: link(optax.sgd(0.05), MASK) for name, link in LINKS.items()}
    params = expected = dict.fromkeys(LINKS, PARAMS)
    states = {name: tx.init(PARAMS) for name, tx in transforms.items()}
    expected_states = states
    params, states = jax.tree.map(lambda a: jnp.stack([a] * 4), (params, states))
    parts = DATA.reshape(4, 2, 4)
    step = jax.pmap(_training_steps(transforms, "d"), axis_name="d")
    step = step.lower(params, states, parts).compile(compiler_options=QUICK)
    alone = jax.jit(_training_steps(transforms, None), compiler_options=QUICK)
    for _ in range(5):
        params, states = step(params, states, parts)
        expected, expected_states = alone(expected, expected_states, DATA)
    lanes, expected = jax.device_get(((params, states), expected))
    chex.assert_trees_all_close(
        lanes[0],
        jax.tree.map(lambda p: np.stack([p] * 4), expected),
        rtol=1e-4,
        atol=1e-6,
    )
    for name in LINKS:
        wanted = jp.get_mask(expected_states[name], expected[name])
        for i in range(4):
            own, state = jax.tree.map(lambda leaf, i=i: leaf[i], lanes)
            mask = jp.get_mask(state[name], own[name])
            chex.assert_trees_all_equal(mask, wanted)
            assert_pruned_are_zero(own[name], mask)
