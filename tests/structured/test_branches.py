"""Residual streams, concatenation, depthwise and grouped convolutions, gates."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxprune import structured
from tests.structured.harness import arrays, check, expected, functional, normal


class Block(nnx.Module):
    def __init__(self, width, out, stride, rngs):
        self.conv1 = nnx.Conv(width, out, (3, 3), strides=stride, rngs=rngs)
        self.norm1 = nnx.BatchNorm(out, rngs=rngs)
        self.conv2 = nnx.Conv(out, out, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(out, rngs=rngs)
        if (width, stride) != (out, 1):
            self.shortcut = nnx.Conv(width, out, (1, 1), strides=stride, rngs=rngs)
        else:
            self.shortcut = nnx.identity

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + self.shortcut(x))


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.blocks = nnx.List(
            [Block(4, 4, 1, rngs), Block(4, 6, 2, rngs), Block(6, 6, 1, rngs)]
        )
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def test_residual_streams_with_and_without_projection():
    fn, state = functional(lambda: ResNet(nnx.Rngs(0)))

    def norm(path):
        return ", ".join(
            f"{path}/{leaf}:0" for leaf in ("scale", "bias", "mean", "var")
        )

    def inner(block, size):
        name = f"blocks/{block}"
        return size, (
            f"{name}/conv1/kernel:3!, {name}/conv1/bias:0, {norm(name + '/norm1')}, "
            f"{name}/conv2/kernel:2"
        )

    def second(block):
        name = f"blocks/{block}"
        return f"{name}/conv2/kernel:3!, {name}/conv2/bias:0, {norm(name + '/norm2')}, "

    groups = expected(
        inner(0, 4),
        inner(1, 6),
        inner(2, 6),
        (
            4,
            "stem/kernel:3!, stem/bias:0, blocks/0/conv1/kernel:2, "
            f"{second(0)}blocks/1/conv1/kernel:2, blocks/1/shortcut/kernel:2",
        ),
        (
            6,
            "blocks/1/shortcut/kernel:3!, blocks/1/shortcut/bias:0, "
            f"{second(1)}blocks/2/conv1/kernel:2, {second(2)}head/kernel:0",
        ),
    )
    check(fn, state, normal(2, 8, 8, 3), groups=groups)


def test_a_stream_that_starts_at_the_input_is_frozen():
    def fn(params, x):
        x = x + jax.nn.relu(x @ params["a"]) @ params["b"]
        return x @ params["c"]

    params = arrays(a=(4, 6), b=(6, 4), c=(4, 2))
    check(fn, params, normal(3, 4), groups=expected((6, "a:1!, b:0")))


def conv(x, w, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_concatenation_as_in_densenet():
    def fn(params, x):
        x = conv(x, params["stem"])
        for name in ("a", "b"):
            x = jnp.concatenate([x, conv(jax.nn.relu(x), params[name])], axis=-1)
        return (x * params["scale"]).mean((1, 2)) @ params["head"]

    params = arrays(
        stem=(3, 3, 3, 4),
        a=(3, 3, 4, 3),
        b=(3, 3, 7, 2),
        scale=(9,),
        head=(9, 2),
    )
    groups = check(
        fn,
        params,
        normal(2, 6, 6, 3),
        groups=expected(
            (4, "stem:3!, a:2, b:2, scale:0, head:0"),
            (3, "a:3!, b:2, scale:0, head:0"),
            (2, "b:3!, scale:0, head:0"),
        ),
        sparsity=0.4,
    )
    last = next(m for m in groups[-1].members if m.path == "head")
    assert last.index.tolist() == [[7], [8]]


def test_a_unet_with_skips():
    def fn(params, x):
        skip = jax.nn.relu(conv(x, params["down"]))
        x = jax.lax.reduce_window(
            skip, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
        )
        x = jax.nn.relu(conv(x, params["middle"]))
        x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        x = jnp.concatenate([skip, x], -1)
        return conv(jax.nn.relu(conv(x, params["up"])), params["out"])

    params = arrays(
        down=(3, 3, 3, 4), middle=(3, 3, 4, 6), up=(3, 3, 10, 5), out=(1, 1, 5, 2)
    )
    groups = expected(
        (4, "down:3!, middle:2, up:2"), (6, "middle:3!, up:2"), (5, "up:3!, out:2")
    )
    check(fn, params, normal(2, 4, 4, 3), groups=groups)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_convolution_goes_with_its_input(multiplier):
    def fn(params, x):
        x = jax.nn.relu(conv(x, params["stem"]))
        x = jax.nn.relu(conv(x, params["depth"], groups=6))
        return conv(x, params["point"]).mean((1, 2)) @ params["head"]

    wide = 6 * multiplier
    params = arrays(
        stem=(3, 3, 3, 6), depth=(3, 3, 1, wide), point=(1, 1, wide, 4), head=(4, 2)
    )
    times = " x2" * (multiplier == 2)
    groups = expected(
        (6, f"stem:3!, depth:3{times}, point:2{times}"), (4, "point:3!, head:0")
    )
    check(fn, params, normal(2, 5, 5, 3), groups=groups)


def test_a_grouped_convolution_loses_whole_groups():
    def fn(params, x):
        x = jax.nn.relu(conv(x, params["stem"]))
        x = jax.nn.relu(conv(x, params["grouped"], groups=4))
        return x.mean((1, 2)) @ params["head"]

    params = arrays(stem=(3, 3, 3, 8), grouped=(3, 3, 2, 12), head=(12, 2))
    groups = expected((4, "stem:3 x2!, grouped:3 x3!, head:0 x3"))
    check(fn, params, normal(2, 5, 5, 3), groups=groups)


def test_squeeze_and_excitation():
    def fn(params, x):
        x = jax.nn.relu(conv(x, params["conv"]))
        gate = jax.nn.relu(x.mean((1, 2)) @ params["down"] + params["bias"])
        gate = jax.nn.sigmoid(gate @ params["up"])
        return (x * gate[:, None, None, :]).mean((1, 2)) @ params["head"]

    params = arrays(conv=(3, 3, 3, 8), down=(8, 4), bias=(4,), up=(4, 8), head=(8, 2))
    groups = expected(
        (8, "conv:3!, down:0, up:1!, head:0"), (4, "down:1!, bias:0, up:0")
    )
    check(fn, params, normal(2, 5, 5, 3), groups=groups)


def test_branches_that_meet_at_the_output_are_frozen():
    def fn(params, x):
        return jnp.concatenate([x @ params["a"], x @ params["b"]], -1)

    groups = structured.channel_groups(fn, arrays(a=(3, 4), b=(3, 2)), normal(2, 3))
    assert not groups
