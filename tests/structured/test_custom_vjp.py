"""Functions with a custom backward rule, which the small function must use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import structured
from tests.helpers import QUICK
from tests.structured.harness import arrays, check, close, expected, normal

WIDTHS = {"w": (5, 8), "b": (8,), "v": (8, 3)}
MLP = expected((8, "w:1!, b:0, v:0"))
X = normal(4, 5)


@jax.custom_vjp
def signs(x):
    return jnp.sign(x)


# Straight through where |x| < 1: autodiff would give 0 everywhere.
signs.defvjp(lambda x: (signs(x), x), lambda x, g: (jnp.where(jnp.abs(x) < 1, g, 0),))


def binary(params, x):
    return signs(x @ params["w"] + params["b"]) @ params["v"]


@jax.custom_vjp
def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def dense_forward(x, layer):
    return dense(x, layer), (x, layer["kernel"])


def dense_backward(saved, g):  # Its weights learn three times as fast.
    x, kernel = saved
    return g @ kernel.T, {"kernel": 3 * x.T @ g, "bias": 3 * g.sum(0)}


dense.defvjp(dense_forward, dense_backward)


def slow_and_fast(params, x):
    hidden = jnp.tanh(dense(x, {"kernel": params["w"], "bias": params["b"]}))
    return hidden @ params["v"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled(power, x, counts, scale):
    inverse = ((x**2).sum(-1, keepdims=True) / 8 + 1e-6) ** -power
    return x * inverse * scale * counts, counts + 1


def scaled_forward(power, x, counts, scale):
    return scaled(power, x, counts, scale), (x, counts, scale)


def scaled_backward(power, saved, g):  # The scale is taken as a constant.
    x, counts, scale = saved
    inverse = ((x**2).sum(-1, keepdims=True) / 8 + 1e-6) ** -power
    g = g[0] * scale * counts
    back = g * inverse - 2 * power * x * inverse**3 * (g * x).sum(-1, keepdims=True) / 8
    return back, None, None


scaled.defvjp(scaled_forward, scaled_backward)


def normed(params, x):
    hidden = x @ params["w"] + params["b"]
    hidden, counts = scaled(0.5, hidden, jnp.arange(4)[:, None], params["s"])
    return (hidden * counts) @ params["v"]


def in_a_loop(params, x):
    hidden = x @ params["w"]
    hidden, _ = jax.lax.scan(
        lambda h, _: (jnp.tanh(h + signs(h) * params["b"]), None), hidden, length=3
    )
    return hidden @ params["v"]


def symbolic(params, x):
    @jax.custom_vjp
    def product(x, y):
        return x * y

    def forward(x, y):
        return x.value * y.value, (x.value, y.value)

    def backward(saved, g):
        return g * saved[1], 5 * g * saved[0]

    product.defvjp(forward, backward, symbolic_zeros=True)
    return product(x @ params["w"], params["b"] + jnp.zeros((4, 1))) @ params["v"]


MODELS = {
    binary: MLP,
    slow_and_fast: MLP,
    normed: expected((8, "w:1!, b:0, s:0, v:0")),
    in_a_loop: MLP,
    symbolic: MLP,
}
each_model = pytest.mark.parametrize("fn", MODELS, ids=lambda fn: fn.__name__)


def parameters(fn):
    return arrays(**WIDTHS, **{"s": (8,)} if fn is normed else {})


@each_model
def test_groups_pass_and_gradients_are_those_of_the_masked_model(fn):
    check(fn, parameters(fn), X, groups=MODELS[fn])


def shrunk(fn, keep=(0, 3, 4)):
    params = parameters(fn)
    groups = structured.channel_groups(fn, params, X)
    scores = [np.isin(np.arange(8), keep).astype(float)]
    mask = structured.structured_mask(scores, groups, params, 5 / 8)
    return structured.shrink(fn, params, mask, groups)


def test_the_backward_rule_is_the_users_not_autodiffs():
    small_fn, small = shrunk(slow_and_fast)

    def plain(params):
        hidden = jnp.tanh(X @ params["w"] + params["b"][None])
        return (hidden @ params["v"]).sum()

    wanted = jax.grad(plain)(small)
    found = jax.grad(lambda p: small_fn(p, X).sum())(small)
    assert small["w"].shape == (5, 3)
    close(found, {"w": 3 * wanted["w"], "b": 3 * wanted["b"], "v": wanted["v"]})


@each_model
def test_under_vmap_and_jit_of_grad(fn):
    small_fn, small = shrunk(fn)
    together = jnp.stack([X, 2 * X])

    def gradient(x):
        return jax.grad(lambda p: (small_fn(p, x) ** 2).sum())(small)

    both = jax.jit(jax.vmap(gradient), compiler_options=QUICK)(together)
    for i, x in enumerate(together):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], both), gradient(x), 3e-5)


def test_second_derivatives_go_through_the_rule():
    small_fn, small = shrunk(slow_and_fast)

    def loss(params):
        return (small_fn(params, X) ** 2).sum()

    # Along v alone the loss is quadratic: its Hessian is 2 hᵀh, whatever the rule.
    hidden = jnp.tanh(X @ small["w"] + small["b"][None])
    wanted = 2 * jnp.einsum("ni,nj,kl->ikjl", hidden, hidden, jnp.eye(3))
    found = jax.jacrev(jax.grad(lambda v: loss({**small, "v": v})))(small["v"])
    close(found, wanted)
    # w's gradient is 3 xᵀg, so its derivative along v is three times the true one.
    found = jax.jacrev(lambda v: jax.grad(loss)({**small, "v": v})["w"])(small["v"])
    true = jax.jacfwd(
        lambda v: jax.grad(
            lambda w: ((jnp.tanh(X @ w + small["b"][None]) @ v) ** 2).sum()
        )(small["w"])
    )(small["v"])
    close(found, 3 * true)


def test_a_rule_that_couples_channels_freezes_them():
    @jax.custom_vjp
    def f(x):
        return jnp.tanh(x)

    f.defvjp(lambda x: (f(x), x), lambda x, g: (jnp.sort(g, axis=-1),))
    groups = structured.channel_groups(
        lambda params, x: f(x @ params["w"]) @ params["v"],
        arrays(w=(5, 8), v=(8, 3)),
        X,
    )
    assert not groups
    assert "sort orders it" in str(groups)


def test_a_rule_that_sums_cotangents_over_channels_freezes_them():
    # Only what reads the output could tell that removed channels add 0 to this mean.
    @jax.custom_vjp
    def f(x):
        return jnp.tanh(x)

    f.defvjp(lambda x: (f(x), None), lambda _, g: (g - g.mean(-1, keepdims=True),))
    groups = structured.channel_groups(
        lambda params, x: f(x @ params["w"]) @ params["v"],
        arrays(w=(5, 8), v=(8, 3)),
        X,
    )
    assert not groups
    assert "would not be 0" in str(groups)
