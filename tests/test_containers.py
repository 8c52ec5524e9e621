"""Any pytree of arrays, from every library: score, mask, apply, train sparse."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxprune as jp
from tests.helpers import (
    assert_pruned_are_zero,
    jitted,
    kept,
    normal,
    numpy_global_mask,
)

X = jax.random.normal(jax.random.key(1), (16, 4))
Y = jnp.sin(X[:, :2])


class Layers(NamedTuple):
    hidden: Any
    bias: Any
    head: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    head: Any
    bias: Any
    hidden: Any


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(8)(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.hidden(x))))


def _loss(output):
    return jnp.mean((output - Y) ** 2)


def _plain(make, read):
    """A container of three arrays: how it is made, and read again."""
    arrays = normal(0, hidden=(4, 8), bias=(8,), head=(8, 2))

    def loss_fn(params, x):
        hidden, bias, head = read(params)
        return _loss(jax.nn.relu(x @ hidden + bias[None]) @ head)

    return make(**arrays), loss_fn


def _bare_array():
    return jnp.eye(4, 2) + 0.1 * X[:4, :2], lambda p, x: _loss(x @ p)


def _linen():
    model = LinenNet()
    params = model.init(jax.random.key(0), X)["params"]
    return params, lambda p, x: _loss(model.apply({"params": p}, x))


def _nnx():
    graphdef, params, rest = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, x):
        return _loss(nnx.merge(graphdef, params, rest, copy=True)(x))

    return params, loss_fn


def _equinox():
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda p, x: _loss(jax.vmap(eqx.combine(p, static))(x))


def _fields(p):
    return p.hidden, p.bias, p.head


# A new kind of tree is one line here and inherits every test below.
CONTAINERS = {
    "dict": lambda: _plain(dict, lambda p: (p["hidden"], p["bias"], p["head"])),
    "nested": lambda: _plain(
        lambda hidden, bias, head: [{"w": hidden, "b": bias}, (), ({"w": head},)],
        lambda p: (p[0]["w"], p[0]["b"], p[2][0]["w"]),
    ),
    "tuple": lambda: _plain(lambda hidden, bias, head: (hidden, bias, head), tuple),
    "list": lambda: _plain(lambda hidden, bias, head: [hidden, bias, head], tuple),
    "NamedTuple": lambda: _plain(Layers, _fields),
    "dataclass": lambda: _plain(Net, _fields),
    "bare array": _bare_array,
    "linen": _linen,
    "nnx.State": _nnx,
    "equinox": _equinox,
}


def _halved(params, mask, step):
    del step
    return jp.global_mask(jp.magnitude(params), 0.5, prior=mask)


LINKS = {
    "keep_sparse": lambda tx, mask: optax.chain(tx, jp.keep_sparse(mask)),
    "sparse": lambda tx, mask: jp.sparse(tx, mask),
    "gradual": lambda tx, _: optax.chain(tx, jp.gradual(0.5, every=3)),
    "update_mask": lambda tx, _: optax.chain(tx, jp.update_mask(_halved, every=3)),
    "k_starts": lambda tx, _: optax.chain(
        tx, jp.k_starts(jax.random.key(0), 3, 0.5, select_at=3)
    ),
    "dissipating": lambda tx, _: optax.chain(
        tx, jp.dissipating(0.5, every=3, until=None)
    ),
    "gradual_n_m": lambda tx, _: optax.chain(tx, jp.gradual_n_m(1, 2, every=3)),
    "rigl": lambda tx, mask: jp.rigl(tx, mask, every=3, until=6),
    "set_training": lambda tx, mask: jp.set_training(
        tx, mask, key=jax.random.key(0), every=3, until=6
    ),
    "granet": lambda tx, _: jp.granet(tx, 0.5, every=3, until=6),
}
each_container = pytest.mark.parametrize("name", CONTAINERS)
each_link = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())


# A link sees a tree of arrays and nothing else of its container, so two links stand for
# all in every container and two containers for all under every link. `gradual` finds a
# mask, and `rigl` finds out which part of the optimizer's state belongs to a weight.
IN_ALL = ("gradual", "rigl")
FOR_ALL = ("nested", "nnx.State")
some_links = pytest.mark.parametrize("link", ["keep_sparse", *IN_ALL])

UNMASKED = {"scale_leaves"}  # A link of optax that holds no mask.


def test_every_link_that_is_exported_has_a_row():
    exported = {
        name
        for name, value in vars(jp).items()
        if inspect.isfunction(value)
        and value.__annotations__.get("return")
        in (optax.GradientTransformation, optax.GradientTransformationExtraArgs)
    }
    assert exported - UNMASKED == set(LINKS)
    assert exported >= UNMASKED


def _matrices(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if np.ndim(leaf) >= 2]


def _assert_like(tree, params):
    assert jax.tree.structure(tree) == jax.tree.structure(params)
    chex.assert_trees_all_equal_shapes(tree, params)


@each_container
def test_scores_and_masks_are_like_the_parameters(name):
    params, loss_fn = CONTAINERS[name]()
    scores = jax.jit(jp.snip(loss_fn))(params, X)
    _assert_like(scores, params)
    gradient = jax.grad(loss_fn)(params, X)
    products = [
        np.abs(np.asarray(p) * np.asarray(g))
        for p, g in zip(_matrices(params), _matrices(gradient), strict=True)
    ]
    for score, product in zip(_matrices(scores), products, strict=True):
        np.testing.assert_allclose(score, product, rtol=1e-5)
    mask = jp.global_mask(scores, 0.5)
    _assert_like(mask, params)
    size = sum(map(np.size, products))
    expected = numpy_global_mask(_matrices(scores), round(0.5 * size))
    for found, wanted in zip(_matrices(mask), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    _assert_like(jp.apply_mask(params, mask), params)
    assert_pruned_are_zero(jp.apply_mask(params, mask), mask)


@each_container
def test_every_builder_takes_it(name):
    params, loss_fn = CONTAINERS[name]()
    size = sum(map(np.size, _matrices(params)))
    rounds = {"sparsity": 0.75, "rounds": 3}
    sparsities = jp.erk(params, 0.75)
    _assert_like(jax.tree.map(np.zeros_like, sparsities), jax.tree.map(np.sum, params))
    layerwise = jp.layerwise_mask(jp.magnitude(params), sparsities)
    for mask, exact in (
        (jp.force_mask(loss_fn, params, X, **rounds), True),
        (layerwise, False),  # Rounded leaf by leaf.
        (jp.n_m_mask(jp.magnitude(params), 1, 4, prunable=jp.divisible_by(4)), False),
    ):
        _assert_like(mask, params)
        assert not exact or kept(_matrices(mask)) == size - round(0.75 * size)
        assert kept(_matrices(mask)) < size
        total = np.mean(np.concatenate([np.ravel(~m) for m in _matrices(mask)]))
        np.testing.assert_allclose(jp.sparsity(mask, params), total, rtol=1e-6)
        assert jp.summary(params, mask).prunable.size == size


@pytest.mark.parametrize(
    ("name", "link"),
    [
        (name, link)
        for name in CONTAINERS
        for link in (LINKS if name in FOR_ALL else IN_ALL)
    ],
)
def test_trains_sparse(name, link):
    params, loss_fn = CONTAINERS[name]()
    mask = jp.global_mask(jp.magnitude(params), 0.5)
    tx = LINKS[link](optax.adamw(0.02, weight_decay=0.1), mask)
    state = tx.init(params)
    size = sum(map(np.size, _matrices(params)))
    first = loss_fn(jp.apply_mask(params, mask), X)

    def step(params, state):
        updates, state = tx.update(jax.grad(loss_fn)(params, X), state, params)
        return optax.apply_updates(params, updates), state

    step, traces = jitted(step)
    for _ in range(12):
        params, state = step(params, state)
    found = jp.get_mask(state, params)
    _assert_like(found, params)
    assert kept(_matrices(found)) == size - round(0.5 * size)
    assert_pruned_are_zero(params, found)
    assert loss_fn(params, X) < first
    assert len(traces) == 1


@each_link
def test_nnx_optimizer(link):
    model = NnxNet(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    mask = jp.global_mask(jp.magnitude(params), 0.5)
    tx = link(optax.adamw(0.02, weight_decay=0.1), mask)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda m: _loss(m(X)))(model)
        optimizer.update(model, gradient)
        return loss

    first = train_step(model, optimizer)
    for _ in range(11):
        last = train_step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    found = jp.get_mask(optimizer.opt_state, params)
    _assert_like(found, params)
    assert_pruned_are_zero(params, found)
    assert kept(_matrices(found)) == 48 - 24
    assert last < first
    # Swapped in place: the model keeps training, now with the other half.
    other = jax.tree.map(lambda p, m: m if p.ndim < 2 else ~m, params, found)
    optimizer.opt_state = jp.set_mask(optimizer.opt_state, other)
    train_step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    assert_pruned_are_zero(params, other)
    chex.assert_trees_all_equal(jp.get_mask(optimizer.opt_state, params), other)


@some_links
def test_nnx_optimizer_with_a_link_inside_masked(link):
    model = NnxNet(nnx.Rngs(0))
    mask = jp.global_mask(jp.magnitude(nnx.state(model, nnx.Param)), 0.5)
    inside = optax.masked(LINKS[link](optax.identity(), mask), jp.matrices)
    tx = optax.chain(optax.adam(0.02), inside)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: _loss(m(X)))(model))

    for _ in range(3):
        train_step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    found = jp.get_mask(optimizer.opt_state, params)
    _assert_like(found, params)
    assert_pruned_are_zero(params, found)
    other = jax.tree.map(lambda p, m: m if p.ndim < 2 else ~m, params, found)
    optimizer.opt_state = jp.set_mask(optimizer.opt_state, other)
    train_step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    chex.assert_trees_all_equal(jp.get_mask(optimizer.opt_state, params), other)
    assert_pruned_are_zero(params, other)


@some_links
def test_flax_train_state(link):
    model = LinenNet()
    params = model.init(jax.random.key(0), X)["params"]
    mask = jp.global_mask(jp.magnitude(params), 0.5)
    tx = LINKS[link](optax.adamw(0.02, weight_decay=0.1), mask)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def train_step(state):
        def loss_fn(params):
            return _loss(state.apply_fn({"params": params}, X))

        loss, gradient = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=gradient), loss

    state, first = train_step(state)
    for _ in range(11):
        state, last = train_step(state)
    found = optax.tree.get(state.opt_state, "mask")
    chex.assert_trees_all_equal(found, jp.get_mask(state.opt_state, state.params))
    assert_pruned_are_zero(state.params, found)
    assert kept(_matrices(found)) == 48 - 24
    assert last < first
