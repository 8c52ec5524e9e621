"""Odd models: every group that is found is right, and the rest is frozen."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import structured
from tests.structured.harness import arrays, check, normal


def conv(x, w, **options):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def channel_shuffle(p, x):
    x = conv(x, p["a"])
    x = x.reshape(*x.shape[:-1], 2, 4).swapaxes(-1, -2).reshape(x.shape)
    return conv(jnp.tanh(x), p["b"]).mean((1, 2))


def pixel_shuffle(p, x):
    x = conv(x, p["a"])
    n, h, w, _ = x.shape
    x = x.reshape(n, h, w, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5)
    return (x.reshape(n, 2 * h, 2 * w, 2) @ p["c"]).mean((1, 2))


def space_to_depth(p, x):
    x = conv(x, p["a"])
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return jnp.sin(x.reshape(n, h // 2, w // 2, 4 * c) @ p["d"]).mean((1, 2))


def weight_norm(p, x):
    w = p["w"] * p["g"] / jnp.sqrt((p["w"] ** 2).sum(0) + 1e-3)
    return jnp.tanh(x @ w) @ p["v"]


def low_rank(p, x):
    return jnp.tanh(x @ (p["w"] + p["l"] @ p["r"])) @ p["v"]


def gates(p, x):
    i, f, o, c = jnp.split(x @ p["w4"], 4, axis=-1)
    return (jax.nn.sigmoid(i) * jnp.tanh(c) + f * jax.nn.sigmoid(o)) @ p["v"]


def padded_shortcut(p, x):
    narrow = x @ p["w"]
    wide = jnp.pad(narrow, ((0, 0), (1, 1))) + jnp.tanh(narrow @ p["u"])
    return wide @ p["t"]


def rolled(p, x):
    return jnp.roll(jnp.tanh(x @ p["w"]), 1, axis=-1) @ p["v"]


def reversed_channels(p, x):
    hidden = x @ p["w"]
    return (hidden + hidden[:, ::-1]) @ p["v"]


def every_other(p, x):
    hidden = x @ p["w"]
    return (hidden[:, ::2] * hidden[:, 1::2]) @ p["v"][:4]


def static_lookup(p, x):
    return (x @ p["w"])[:, np.array([3, 1, 0])] @ p["v"][:3]


def written_in_place(p, x):
    return (x @ p["w"]).at[:, 2].set(1.0) @ p["v"]


def largest(p, x):
    hidden = x @ p["w"]
    return (hidden / (1 + hidden.max(-1, keepdims=True) ** 2)) @ p["v"]


def best_few(p, x):
    return jax.lax.top_k(x @ p["w"], 3)[0] @ p["v"][:3]


def regularised(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"] + sum((leaf**2).sum() for leaf in p.values())


def gram(p, x):
    hidden = x @ p["w"]
    return (hidden.T @ hidden) @ p["v"]


def distances(p, x):
    hidden = x @ p["w"]
    return ((hidden[:, None] - hidden[None]) ** 2).sum(-1)


def cosine(p, x):
    hidden = jnp.tanh(x @ p["w"])
    return hidden @ hidden.T / jnp.linalg.norm(hidden + 1e-3, axis=-1)[:, None]


def one_position(p, x):
    hidden = x @ p["w"]
    return hidden @ p["v"] + hidden[:, :1] * 2


def shifted(p, x):
    hidden = x @ p["w"]
    return (hidden[:, 1:] - hidden[:, :-1]) @ p["v"][1:]


def tokens_alone(p, x):
    return jnp.tanh(p["w"] @ p["v"]) + x.sum()


def outer(p, x):
    pair = jnp.einsum("bi,bj->bij", x @ p["w"], x @ p["u5"])
    return pair.reshape(len(x), -1) @ p["pair"]


def loss_gradient(p, x):
    return jax.grad(lambda x: jnp.tanh(x @ p["w"]).sum() + (x @ p["w"] @ p["v"]).sum())(
        x
    )


def summed_logs(p, x):
    # Of n zeros it is log n, so the small function adds squares of the removed ones.
    return jnp.sum(jax.lax.cumlogsumexp(x @ p["w"], axis=0) ** 2, -1)


def filled(p, x):
    rows = jnp.take(x @ p["w"], jnp.array([0, 9]), axis=0, mode="fill", fill_value=1.0)
    return jnp.sum(rows**2, -1)


def of_nothing(p, x):
    return jnp.sum(jnp.prod((x @ p["w"])[:0], axis=0) ** 2)


def chunks(p, x):
    hidden = x @ p["w"]
    return sum(jnp.tanh(part) @ p["v"][:2] for part in jnp.split(hidden, 4, -1))


def halves_that_cross(p, x):
    hidden = x @ p["w"]
    a, b = hidden[:, :4], hidden[:, 4:]
    return jnp.concatenate([b, a, a * b], -1) @ p["long"]


def transposed_convolution(p, x):
    x = jax.lax.conv_transpose(x, p["a"], (2, 2), "SAME")
    return conv(jnp.tanh(x), p["b"]).mean((1, 2))


def mapped(p, x):
    return jax.lax.map(lambda row: jnp.tanh(row @ p["w"]) @ p["v"], x)


def per_channel_loop(p, x):
    hidden = x @ p["w"]
    return jax.lax.map(lambda row: jnp.tanh(row), hidden.T).T @ p["v"]


PARAMS = arrays(
    w=(4, 8), v=(8, 2), g=(8,), l=(4, 3), r=(3, 8), w4=(4, 32), u=(8, 10), t=(10, 2),
    a=(3, 3, 4, 8), b=(3, 3, 8, 2), c=(2, 2), d=(32, 3), u5=(4, 5), pair=(40, 2),
    long=(12, 2),
)  # fmt: skip
IMAGES = {channel_shuffle, pixel_shuffle, space_to_depth, transposed_convolution}
# What must be found; 0: all is frozen.
MODELS = {
    channel_shuffle: 1, pixel_shuffle: 1, space_to_depth: 1, weight_norm: 1,
    low_rank: 2, gates: 1, padded_shortcut: 1, rolled: 1, reversed_channels: 1,
    every_other: 1, static_lookup: 0, written_in_place: 0, largest: 0, best_few: 0,
    regularised: 1, gram: 0, distances: 1, cosine: 1, one_position: 1, shifted: 0,
    tokens_alone: 1, outer: 1, loss_gradient: 2, chunks: 1, halves_that_cross: 1,
    transposed_convolution: 1, mapped: 1, per_channel_loop: 0, summed_logs: 1,
    filled: 1, of_nothing: 0,
}  # fmt: skip


@pytest.mark.parametrize("fn", MODELS, ids=lambda fn: fn.__name__)
def test_what_is_found_is_right(fn):
    names = set(re.findall(r'p\["(\w+)"\]', inspect.getsource(fn)))
    params = {name: PARAMS[name] for name in names}
    x = normal(2, 4, 4, 4) if fn in IMAGES else normal(3, 4)
    groups = structured.channel_groups(fn, params, x)
    assert len(groups) == MODELS[fn], str(groups)
    if groups:
        check(fn, params, x, sparsity=0.4, work=False)
