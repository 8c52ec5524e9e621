"""Dense and convolutional stacks, normalisations, flattening and pooling."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxprune import structured
from tests.structured.harness import (
    arrays,
    check,
    expected,
    functional,
    normal,
    randomized,
)


def test_a_dense_stack():
    def mlp(params, x):
        x = jax.nn.relu(x @ params["w1"] + params["b1"])
        x = jnp.tanh(x @ params["w2"] + params["b2"])
        return x @ params["w3"] + params["b3"]

    params = arrays(w1=(5, 8), b1=(8,), w2=(8, 6), b2=(6,), w3=(6, 3), b3=(3,))
    groups = check(
        mlp,
        params,
        normal(4, 5),
        groups=expected((8, "w1:1!, b1:0, w2:0"), (6, "w2:1!, b2:0, w3:0")),
    )
    assert [group.name for group in groups] == ["w1", "w2"]
    reasons = {(f.path, f.axis): f.reason for f in groups.frozen}
    assert reasons == {
        ("w1", 0): "meets input 0, axis 1",
        ("w3", 1): "reaches output (root), axis 1",
        ("b3", 0): "reaches output (root), axis 1",
    }


@pytest.mark.parametrize(
    "act",
    [
        jax.nn.gelu,
        jax.nn.sigmoid,
        jax.nn.silu,
        jnp.cos,
        jax.nn.relu6,
        jax.nn.leaky_relu,
    ],
)
def test_whatever_the_activation_makes_of_zero(act):
    def mlp(params, x):
        return act(x @ params["w"] + params["b"]) @ params["v"]

    check(mlp, arrays(w=(5, 8), b=(8,), v=(8, 3)), normal(4, 5))


def test_weights_on_the_left_and_einsum():
    def transposed(params, x):
        hidden = jnp.maximum(jnp.einsum("hi,bi->hb", params["w"], x), 0)
        return jnp.einsum("oh,hb->bo", params["v"], hidden + params["b"][:, None])

    groups = expected((8, "w:0!, b:0, v:1"))
    check(transposed, arrays(w=(8, 5), b=(8,), v=(3, 8)), normal(4, 5), groups=groups)


LAYOUTS = {
    "NHWC": (("NHWC", "HWIO", "NHWC"), (2, 8, 8, 3), lambda k, i, o: (k, k, i, o)),
    "NCHW": (("NCHW", "OIHW", "NCHW"), (2, 3, 8, 8), lambda k, i, o: (o, i, k, k)),
    "CHWN": (("CHWN", "IHWO", "CHWN"), (3, 8, 8, 2), lambda k, i, o: (i, k, k, o)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_strides": (2, 2)},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1), "padding": [(1, 2), (1, 1)]},
    ],
    ids=str,
)
def test_convolutions_in_any_layout(layout, options):
    spec, x_shape, kernel = LAYOUTS[layout]
    out, into = spec[1].index("O"), spec[1].index("I")
    options = {"window_strides": (1, 1), "padding": "SAME", **options}

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, dimension_numbers=spec, **options)

    def stack(params, x):
        x = jax.nn.relu(conv(x, params["a"]))
        x = jax.nn.relu(conv(x, params["b"]))
        return conv(x, params["c"])

    check(
        stack,
        arrays(a=kernel(3, 3, 6), b=kernel(3, 6, 4), c=kernel(1, 4, 2)),
        normal(*x_shape),
        groups=expected((6, f"a:{out}!, b:{into}"), (4, f"b:{out}!, c:{into}")),
    )


def test_a_one_channel_convolution_is_not_depthwise():
    def stack(params, x):
        for name in "ab":
            x = jax.lax.conv(x, params[name], (1, 1), "SAME")
        return x

    params = arrays(a=(4, 1, 3, 3), b=(2, 4, 3, 3))
    check(stack, params, normal(2, 1, 6, 6), groups=expected((4, "a:0!, b:1")))


class ConvNet(nnx.Module):
    """Conv, BatchNorm, pooling, flattening, dense: as in any tutorial."""

    def __init__(self, norm, rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = norm(8, rngs=rngs)
        self.conv2 = nnx.Conv(8, 4, (3, 3), strides=2, rngs=rngs)
        self.norm2 = norm(4, rngs=rngs)
        self.dense1 = nnx.Linear(4 * 4 * 4 // 4, 6, rngs=rngs)
        self.dense2 = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.max_pool(self.norm2(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense2(x)


def test_batch_norm_with_running_statistics_among_the_parameters():
    fn, state = functional(lambda: ConvNet(nnx.BatchNorm, nnx.Rngs(0)))
    groups = check(
        fn,
        state,
        normal(2, 8, 8, 3),
        groups=expected(
            (
                8,
                "conv1/kernel:3!, norm1/scale:0, norm1/bias:0, norm1/mean:0, "
                "norm1/var:0, conv2/kernel:2",
            ),
            (
                4,
                "conv2/kernel:3!, conv2/bias:0, norm2/scale:0, norm2/bias:0, "
                "norm2/mean:0, norm2/var:0, dense1/kernel:0 x4",
            ),
            (6, "dense1/kernel:1!, dense1/bias:0, dense2/kernel:0"),
        ),
    )
    member = next(m for m in groups[1].members if m.path == "dense1/kernel")
    assert member.index.tolist() == [[c, c + 4, c + 8, c + 12] for c in range(4)]


def test_batch_norm_with_running_statistics_closed_over():
    model = nnx.eval_shape(lambda: ConvNet(nnx.BatchNorm, nnx.Rngs(0)))
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = randomized(params), randomized(rest, seed=3)

    def fn(params, x):
        return nnx.merge(graphdef, params, rest, copy=True)(x)

    groups = check(fn, params, normal(2, 8, 8, 3))
    assert [group.size for group in groups] == [8, 4, 6]


NORMS = {
    "layer": nnx.LayerNorm,
    "rms": nnx.RMSNorm,
    "group": functools.partial(nnx.GroupNorm, num_groups=4),
    "instance": nnx.InstanceNorm,
}


@pytest.mark.parametrize("norm", NORMS)
def test_other_norms(norm):
    fn, state = functional(lambda: ConvNet(NORMS[norm], nnx.Rngs(0)))
    groups = check(fn, state, normal(2, 8, 8, 3), sparsity=0.3)
    sizes = [group.size for group in groups]
    assert sizes == ([4, 4, 6] if norm == "group" else [8, 4, 6])


class LinenNet(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        for width in (8, 4):
            x = nn.Conv(width, (3, 3), padding="VALID")(x)
            x = nn.BatchNorm(use_running_average=not self.train)(x)
            x = nn.avg_pool(nn.relu(x), (2, 2), (1, 1))
        x = nn.relu(nn.Dense(6)(x.mean((1, 2))))
        return nn.Dense(2)(x)


def test_linen_with_global_pooling():
    x = normal(2, 8, 8, 3)
    variables = randomized(jax.eval_shape(LinenNet().init, jax.random.key(0), x))
    groups = check(LinenNet().apply, variables, x)
    assert [group.size for group in groups] == [8, 4, 6]
    assert "batch_stats/BatchNorm_0/var" in {m.path for m in groups[0].members}


def test_train_mode_that_returns_new_statistics():
    x = normal(8, 8, 8, 3)
    variables = randomized(jax.eval_shape(LinenNet().init, jax.random.key(0), x))

    def fn(variables, x):
        return LinenNet(train=True).apply(variables, x, mutable=["batch_stats"])

    groups = check(fn, variables, x)
    assert [group.size for group in groups] == [8, 4, 6]


@pytest.mark.parametrize("pool", [nn.max_pool, nn.avg_pool])
def test_global_and_window_pooling(pool):
    def fn(params, x):
        x = jax.nn.relu(jax.lax.conv(x, params["w"], (1, 1), "SAME"))
        x = pool(jnp.moveaxis(x, 1, -1), (2, 2), (2, 2), padding="SAME")
        return x.max((1, 2)) @ params["v"] + x.mean((1, 2)) @ params["u"]

    params = arrays(w=(6, 3, 3, 3), v=(6, 2), u=(6, 2))
    groups = expected((6, "w:0!, v:0, u:0"))
    check(fn, params, normal(2, 3, 7, 7), groups=groups)


def test_flatten_in_either_order():
    def fn(params, x):
        x = jax.lax.conv(x, params["w"], (1, 1), "SAME")
        return jax.nn.relu(x).reshape(len(x), -1) @ params["v"]

    params = arrays(w=(5, 3, 3, 3), v=(5 * 9, 2))
    groups = check(fn, params, normal(2, 3, 3, 3), groups=expected((5, "w:0!, v:0 x9")))
    index = next(m.index for m in groups[0].members if m.path == "v")
    assert index.tolist() == [list(range(9 * c, 9 * c + 9)) for c in range(5)]


def two_pass(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def by_hand(x):
    mean = jnp.sum(x, axis=-1) / x.shape[-1]
    centred = x - jnp.broadcast_to(mean[:, None], x.shape)
    spread = jnp.sum(jnp.abs(centred), axis=-1) / x.shape[-1]
    return centred / (spread[:, None] + 0.1)


@pytest.mark.parametrize("norm", [two_pass, by_hand])
def test_sums_of_deviations_from_the_mean_keep_the_old_width(norm):
    def fn(params, x):
        return norm(jnp.tanh(x @ params["w"])) * params["s"] @ params["v"]

    params = arrays(w=(5, 6), s=(6,), v=(6, 2))
    check(fn, params, normal(4, 5), groups=expected((6, "w:1!, s:0, v:0")))


def test_equinox_layer_norm():
    norm = eqx.nn.LayerNorm(6)

    def fn(params, x):
        x = jax.vmap(eqx.tree_at(lambda n: n.weight, norm, params["s"]))(
            x @ params["w"]
        )
        return x @ params["v"]

    params = arrays(w=(5, 6), s=(6,), v=(6, 2))
    check(fn, params, normal(4, 5), groups=expected((6, "w:1!, s:0, v:0")))


def test_a_sum_of_what_is_not_zero_is_frozen_not_guessed():
    def fn(params, x):
        x = jax.nn.softmax(x @ params["w"])
        return x @ params["v"]

    params = arrays(w=(5, 6), v=(6, 2))
    groups = structured.channel_groups(fn, params, normal(4, 5))
    assert not groups
    assert "reduce_max" in str(groups)


def test_a_sum_whose_removed_terms_differ():
    def fn(params, x):
        hidden = x @ params["w"]
        total = jnp.cos(hidden + jnp.arange(6.0)).sum(-1, keepdims=True)
        return (hidden * total) @ params["v"]

    check(fn, arrays(w=(5, 6), v=(6, 2)), normal(4, 5))


def test_a_sum_over_two_axes_of_channels_is_frozen():
    def fn(params, x):
        hidden = x @ params["w"]
        total = (1 + hidden[:, :, None] * (x @ params["u"])[:, None, :]).sum((1, 2))
        return (hidden * total[:, None]) @ params["v"]

    params = arrays(w=(5, 6), v=(6, 2), u=(5, 3))
    groups = structured.channel_groups(fn, params, normal(4, 5))
    assert not groups
    assert "summed over" in str(groups)


def test_the_cosine_of_removed_channels_still_counts():
    def fn(params, x):
        return (jnp.cos(x @ params["w"]) / 6).sum(-1, keepdims=True)

    check(fn, arrays(w=(5, 6)), normal(4, 5), groups=expected((6, "w:1!")))


def test_an_unknown_primitive_is_frozen_and_named():
    def fn(params, x):
        return jnp.linalg.qr(x @ params["w"])[0] @ params["v"]

    groups = structured.channel_groups(fn, arrays(w=(5, 6), v=(6, 2)), normal(7, 5))
    assert not groups
    assert "the primitive qr has no rule" in str(groups)
