"""Primitives that run other functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import structured
from tests.structured.harness import arrays, check, expected, normal

WIDTHS = {"w": (5, 8), "b": (8,), "v": (8, 3)}
MLP = expected((8, "w:1!, b:0, v:0"))


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_over_stacked_layers(reverse):
    def fn(params, x):
        def layer(x, weights):
            hidden = jax.nn.relu(x @ weights["up"])
            return x + hidden @ weights["down"], hidden.mean()

        x, means = jax.lax.scan(
            layer, x @ params["in"], params["layers"], reverse=reverse
        )
        return x @ params["out"], means

    params = {
        "in": arrays(a=(4, 6))["a"],
        "layers": arrays(up=(3, 6, 8), down=(3, 8, 6)),
        "out": arrays(a=(6, 2))["a"],
    }
    groups = expected(
        (6, "in:1!, layers/up:1, layers/down:2!, out:0"),
        (8, "layers/up:2!, layers/down:1"),
    )
    check(fn, params, normal(3, 4), groups=groups)


def test_scan_over_stacked_layers_and_time():
    def fn(params, x):
        def cell(state, now):
            state = jnp.tanh(state @ params["r"] + now @ params["w"])
            return state, state @ params["v"]

        start = jnp.zeros((3, 6))
        return jax.lax.scan(cell, start, x)[1]

    params = arrays(r=(6, 6), w=(4, 6), v=(6, 2))
    groups = check(fn, params, normal(5, 3, 4), work=False)
    assert [group.size for group in groups] == [6]


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable])
def test_remat(policy):
    def fn(params, x):
        @functools.partial(jax.checkpoint, policy=policy)
        def hidden(x):
            return jax.nn.gelu(x @ params["w"] + params["b"])

        return hidden(x) @ params["v"]

    check(fn, arrays(**WIDTHS), normal(4, 5), groups=MLP)


def test_custom_jvp_keeps_its_derivative():
    @jax.custom_jvp
    def twice(x, y):
        return x * y

    @twice.defjvp
    def _(primals, tangents):
        x, y = primals
        return twice(x, y), 7 * tangents[0] * y + x * tangents[1]

    def fn(params, x):
        return twice(x @ params["w"], params["b"]) @ params["v"]

    params = arrays(**WIDTHS)
    groups = check(fn, params, normal(4, 5), groups=MLP)
    mask = structured.structured_mask([np.arange(8.0)], groups, params, 0.5)
    small_fn, small = structured.shrink(fn, params, mask, groups)
    x = normal(4, 5)
    gradient = jax.grad(lambda p: small_fn(p, x).sum())(small)["w"]
    assert jnp.allclose(
        gradient, 7 * (x.sum(0)[:, None] * (small["b"] * small["v"].sum(1))), rtol=1e-4
    )
    second = jax.hessian(lambda p: (small_fn(p, x) ** 2).sum())(small)
    assert jax.tree.all(jax.tree.map(lambda h: jnp.isfinite(h).all(), second))


def test_cond_and_switch():
    def fn(params, x):
        hidden = x @ params["w"] + params["b"]
        hidden = jax.lax.cond(x[0, 0] > 0, jnp.tanh, lambda h: h * params["b"], hidden)
        branches = [jnp.sin, jnp.cos, lambda h: h + params["b"]]
        hidden = jax.lax.switch(jnp.int32(x[0, 1] > 0), branches, hidden)
        return hidden @ params["v"]

    check(fn, arrays(**WIDTHS), normal(4, 5), groups=MLP)


def test_while_and_fori_loops():
    def fn(params, x):
        hidden = x @ params["w"]
        hidden = jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h + params["b"]), hidden)
        return hidden @ params["v"]

    check(fn, arrays(**WIDTHS), normal(4, 5), groups=MLP)


def test_a_function_called_twice_with_other_channels():
    act = jax.jit(lambda x: jnp.sin(x) + 1)

    def fn(params, x):
        return act(act(x @ params["w"] + params["b"]) @ params["v"]) @ params["u"]

    groups = expected((8, "w:1!, b:0, v:0"), (3, "v:1!, u:0"))
    check(fn, arrays(**WIDTHS, u=(3, 2)), normal(4, 5), groups=groups)


def test_dropout_draws_what_the_full_model_draws():
    def fn(params, x, key):
        hidden = jax.nn.relu(x @ params["w"] + params["b"])
        kept = jax.random.bernoulli(key, 0.5, hidden.shape)
        return jnp.where(kept, hidden / 0.5, 0) @ params["v"]

    check(fn, arrays(**WIDTHS), normal(4, 5), jax.random.key(0), groups=MLP)


def test_positions_made_at_full_size_are_narrowed():
    def fn(params, x):
        hidden = x @ params["w"] + params["b"] * jnp.arange(8.0)
        return hidden @ params["v"]

    check(fn, arrays(**WIDTHS), normal(4, 5), groups=MLP)


def test_an_equation_without_outputs_touches_nothing():
    def fn(params, x):
        hidden = jnp.tanh(x @ params["w"] + params["b"][None])
        jax.debug.callback(lambda mean: None, jnp.mean(x))
        return hidden @ params["v"]

    check(fn, arrays(**WIDTHS), normal(4, 5), groups=MLP)


def test_a_derivative_rule_of_integers_is_followed():
    @jax.custom_jvp
    def scaled(x, n):
        return x * n.astype(x.dtype), n + 1

    @scaled.defjvp
    def _(primals, tangents):
        (x, n), (dx, _) = primals, tangents
        nothing = np.zeros(n.shape, jax.dtypes.float0)
        return scaled(x, n), (dx * n.astype(x.dtype), nothing)

    def fn(params, x):
        hidden, _ = scaled(x @ params["w"] + params["b"][None], jnp.int32(3))
        return jnp.tanh(hidden) @ params["v"]

    check(fn, arrays(**WIDTHS), normal(4, 5), groups=MLP)


def test_an_output_at_a_parameters_place_is_no_new_value_of_it():
    def fn(params, x):
        (w, b), (v, c) = params
        logits = jnp.tanh(x @ w + b) @ v + c
        return jnp.sum(logits**2), logits  # At 1, as c is at 1/1.

    params = arrays(w=(5, 8), b=(8,), v=(8, 3), c=(3,))
    params = [(params["w"], params["b"]), (params["v"], params["c"])]
    groups = structured.channel_groups(fn, params, normal(5))
    assert [group.size for group in groups] == [8]


def test_a_bare_output_is_no_new_value_of_a_bare_array():
    groups = structured.channel_groups(lambda w, x: w * x, normal(8), normal(1))
    assert not groups and "reaches output (root)" in str(groups)


@pytest.mark.parametrize("order", ["params first", "statistics first", "by name"])
def test_new_statistics_are_known_by_name_wherever_they_stand(order):
    def norm(weights, old, x):
        hidden = x @ weights["w"]
        mean, var = jnp.mean(hidden, 0), jnp.var(hidden, 0)
        scaled = (hidden - mean[None]) / jnp.sqrt(var + 1e-5)[None]
        new = {"mean": 0.9 * old["mean"] + 0.1 * mean, "var": 0.9 * old["var"] + var}
        return jax.nn.relu(scaled + weights["b"][None]) @ weights["v"], new

    weights, old = arrays(**WIDTHS), arrays(mean=(8,), var=(8,))
    fn, params = {
        "params first": (lambda p, x: norm(*p, x), (weights, old)),
        "statistics first": (lambda p, x: norm(*p[::-1], x)[::-1], (old, weights)),
        "by name": (lambda p, x: norm(p["w"], p["s"], x), {"w": weights, "s": old}),
    }[order]
    (group,) = structured.channel_groups(fn, params, normal(4, 5))
    assert group.size == 8 and len(group.members) == 5
