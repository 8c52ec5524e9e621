"""Heads, query-key and value dimensions, MLPs, residual widths, embeddings."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.structured.harness import arrays, check, expected, functional, normal

TOKENS = jnp.arange(10).reshape(2, 5) % 7


def attend(q, k, v):
    """Softmax attention of arrays (batch, time, heads, dimension)."""
    weights = jnp.einsum("bqhk,bthk->bhqt", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqt,bthk->bqhk", jax.nn.softmax(weights), v)


class Layer(nnx.Module):
    def __init__(self, width, rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, width, qkv_features=8, decode=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 12, rngs=rngs)
        self.down = nnx.Linear(12, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patches = nnx.Conv(3, 6, (4, 4), strides=4, rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, 6)))
        self.positions = nnx.Param(jnp.zeros((1, 5, 6)))
        self.layer = Layer(6, rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], 1) + self.positions[...]
        return self.head(self.norm(self.layer(x))[:, 0])


def test_a_vision_transformer():
    fn, state = functional(lambda: ViT(nnx.Rngs(0)))
    att, up, down = "layer/attention", "layer/up", "layer/down"
    stream = (
        f"patches/kernel:3!, patches/bias:0, token:2, positions:2, "
        f"layer/norm1/scale:0, layer/norm1/bias:0, {att}/query/kernel:0, "
        f"{att}/key/kernel:0, {att}/value/kernel:0, {att}/out/kernel:2!, "
        f"{att}/out/bias:0, layer/norm2/scale:0, layer/norm2/bias:0, {up}/kernel:0, "
        f"{down}/kernel:1!, {down}/bias:0, norm/scale:0, norm/bias:0, head/kernel:0"
    )
    heads = ", ".join(
        f"{att}/{n}/kernel:1!, {att}/{n}/bias:0" for n in ("query", "key", "value")
    )
    inner = ", ".join(
        f"{att}/{n}/kernel:2!, {att}/{n}/bias:1" for n in ("query", "key")
    )
    groups = expected(
        (6, stream),
        (2, f"{heads}, {att}/out/kernel:0"),
        (4, inner),
        (4, f"{att}/value/kernel:2!, {att}/value/bias:1, {att}/out/kernel:1"),
        (12, f"{up}/kernel:1!, {up}/bias:0, {down}/kernel:0"),
    )
    check(fn, state, normal(2, 8, 8, 3), groups=groups)


def test_heads_of_flat_kernels_are_whole():
    def fn(params, x):
        x = x @ params["in"]
        q, k, v = ((x @ params[n]).reshape(2, 5, 3, 4) for n in ("q", "k", "v"))
        x = attend(q, k, v).reshape(2, 5, 12)
        return x @ params["o"]

    params = arrays(
        **{"in": (4, 6), "q": (6, 12), "k": (6, 12), "v": (6, 12), "o": (12, 2)}
    )
    groups = expected(
        (6, "in:1!, q:0, k:0, v:0"), (3, "q:1 x4!, k:1 x4!, v:1 x4!, o:0 x4")
    )
    check(fn, params, normal(2, 5, 4), groups=groups, sparsity=0.4)


def test_a_fused_projection_that_is_split():
    def fn(params, x):
        parts = jnp.split(x @ params["qkv"], 3, axis=-1)
        heads = [part.reshape(2, 5, 3, 4).swapaxes(1, 2) for part in parts]
        q, k, v = (part.swapaxes(1, 2) for part in heads)
        return attend(q, k, v).reshape(2, 5, 12) @ params["o"]

    params = arrays(qkv=(6, 36), o=(12, 2))
    groups = check(
        fn, params, normal(2, 5, 6), groups=expected((3, "qkv:1 x12!, o:0 x4"))
    )
    index = groups[0].members[1].index
    assert index[0].tolist() == [*range(4), *range(12, 16), *range(24, 28)]


def test_a_fused_projection_that_is_reshaped():
    def fn(params, x):
        for n in "ab":
            qkv = (x @ params["qkv" + n]).reshape(2, 5, 3, 2, 4)
            x = (
                x
                + attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(2, 5, 8)
                @ params["o" + n]
            )
        return x @ params["head"]

    params = arrays(qkva=(6, 24), oa=(8, 6), qkvb=(6, 24), ob=(8, 6), head=(6, 2))
    groups = expected((2, "qkva:1 x12!, oa:0 x4"), (2, "qkvb:1 x12!, ob:0 x4"))
    check(fn, params, normal(2, 5, 6), groups=groups)


@pytest.mark.parametrize("share", ["repeat", "tile", "reshape"])
def test_grouped_queries_go_with_their_keys(share):
    def fn(params, x):
        q = (x @ params["q"]).reshape(2, 5, 4, 3)
        k = (x @ params["k"]).reshape(2, 5, 2, 3)
        v = (x @ params["v"]).reshape(2, 5, 2, 3)
        if share == "reshape":
            q = q.reshape(2, 5, 2, 2, 3)
            weights = jax.nn.softmax(jnp.einsum("bqgrk,btgk->bgrqt", q, k))
            x = jnp.einsum("bgrqt,btgk->bqgrk", weights, v)
        elif share == "repeat":
            x = attend(q, jnp.repeat(k, 2, 2), jnp.repeat(v, 2, 2))
        else:
            x = attend(q, jnp.tile(k, (1, 1, 2, 1)), jnp.tile(v, (1, 1, 2, 1)))
        return x.reshape(2, 5, 12) @ params["o"]

    params = arrays(q=(6, 12), k=(6, 6), v=(6, 6), o=(12, 2))
    groups = expected((2, "q:1 x6!, k:1 x3!, v:1 x3!, o:0 x6"))
    check(fn, params, normal(2, 5, 6), groups=groups)


@pytest.mark.parametrize("fused", [False, True])
def test_gated_mlps(fused):
    def fn(params, x):
        x = x @ params["in"]
        if fused:
            gate, value = jnp.split(x @ params["w"], 2, axis=-1)
        else:
            gate, value = x @ params["g"], x @ params["u"]
        return (jax.nn.silu(gate) * value) @ params["d"]

    shapes = {"in": (4, 6), "d": (8, 2)}
    if fused:
        groups = expected((6, "in:1!, w:0"), (8, "w:1 x2!, d:0"))
        params = arrays(**shapes, w=(6, 16))
    else:
        groups = expected((6, "in:1!, g:0, u:0"), (8, "g:1!, u:1!, d:0"))
        params = arrays(**shapes, g=(6, 8), u=(6, 8))
    check(fn, params, normal(3, 4), groups=groups)


def rms(x, scale):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def test_a_language_model_with_tied_embeddings():
    def fn(params, tokens):
        x = params["table"][tokens] + params["positions"][None, :5]
        x = x + jax.nn.gelu(rms(x, params["scale"]) @ params["up"]) @ params["down"]
        return rms(x, params["last"]) @ params["table"].T

    params = arrays(
        table=(7, 6), positions=(9, 6), scale=(6,), last=(6,), up=(6, 8), down=(8, 6)
    )
    groups = expected(
        (6, "table:1!, positions:1, scale:0, last:0, up:0, down:1!"),
        (8, "up:1!, down:0"),
    )
    check(fn, params, TOKENS, groups=groups)


def test_one_hot_embeddings_and_rotary_positions():
    def rotate(x):
        a, b = jnp.split(x, 2, axis=-1)
        angle = jnp.arange(5.0)[:, None] * 2.0 ** -jnp.arange(2.0)
        angle = angle[None, :, None, :]
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def fn(params, tokens):
        x = jax.nn.one_hot(tokens, 7) @ params["table"]
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, params[n]) for n in ("q", "k", "v"))
        return jnp.einsum("bthk,hko->bto", attend(rotate(q), rotate(k), v), params["o"])

    params = arrays(table=(7, 6), q=(6, 2, 4), k=(6, 2, 4), v=(6, 2, 4), o=(2, 4, 3))
    groups = expected(
        (6, "table:1!, q:0, k:0, v:0"),
        (2, "q:1!, k:1!, v:1!, o:0"),
        (2, "q:2 x2!, k:2 x2!"),
        (4, "v:2!, o:1"),
    )
    check(fn, params, TOKENS, groups=groups)
