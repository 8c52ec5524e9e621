import functools
import itertools
from fractions import Fraction

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

import jaxprune as jp

F32 = jnp.float32


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, F32)


def random_mask(shape, density=0.4, seed=0):
    kept = np.zeros(np.prod(shape), bool)
    kept[: round(density * kept.size)] = True
    return np.random.default_rng(seed).permutation(kept).reshape(shape)


def conv(x, w, stride=1, padding="VALID", groups=1, batch_groups=1, into=1, taps=1):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        padding,
        lhs_dilation=(into, into),
        rhs_dilation=(taps, taps),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        batch_group_count=batch_groups,
    )


# Each is linear in the weight: its FLOPs by hand, beside the shapes.
dot, conv_transpose = jnp.matmul, jax.lax.conv_transpose
CONTRACTIONS = {
    "matmul": (dot, (5, 3), (3, 4), 2 * 5 * 3 * 4),
    "vector": (dot, (7,), (7,), 2 * 7),
    "batched": (
        functools.partial(jnp.einsum, "bij,bjk->bik"),
        (2, 5, 3),
        (2, 3, 4),
        240,
    ),
    "einsum": (
        functools.partial(jnp.einsum, "btd,dhk->bthk"),
        (2, 5, 8),
        (8, 2, 3),
        2 * 2 * 5 * 8 * 2 * 3,
    ),
    "tensordot": (
        functools.partial(jnp.tensordot, axes=2),
        (5, 3, 4),
        (3, 4, 6),
        2 * 5 * 12 * 6,
    ),
    "conv": (conv, (2, 8, 8, 3), (3, 3, 3, 5), 2 * 2 * 36 * 27 * 5),
    "conv 1x1": (conv, (1, 4, 4, 3), (1, 1, 3, 5), 2 * 16 * 3 * 5),
    "stride": (
        functools.partial(conv, stride=2),
        (1, 8, 8, 3),
        (3, 3, 3, 5),
        2 * 9 * 27 * 5,
    ),
    "dilation": (
        functools.partial(conv, taps=2),
        (1, 8, 8, 3),
        (3, 3, 3, 5),
        2 * 16 * 27 * 5,
    ),
    "groups": (
        functools.partial(conv, groups=2),
        (1, 8, 8, 4),
        (3, 3, 2, 6),
        2 * 36 * 18 * 6,
    ),
    "depthwise": (
        functools.partial(conv, groups=4),
        (1, 8, 8, 4),
        (3, 3, 1, 8),
        2 * 36 * 9 * 8,
    ),
    "batch groups": (
        functools.partial(conv, batch_groups=2),
        (4, 8, 8, 3),
        (3, 3, 3, 6),
        2 * 2 * 36 * 27 * 6,
    ),
    "transposed": (
        functools.partial(conv_transpose, strides=(2, 2), padding="VALID"),
        (1, 4, 4, 3),
        (3, 3, 3, 5),
        2 * 16 * 27 * 5,
    ),
    "ragged": (
        lambda x, w: jax.lax.ragged_dot(x, w, jnp.array([3, 2], jnp.int32)),
        (5, 3),
        (2, 3, 4),
        2 * 5 * 3 * 4,
    ),
}
each_contraction = pytest.mark.parametrize(
    "case", CONTRACTIONS.values(), ids=CONTRACTIONS.keys()
)


@each_contraction
def test_flops_by_hand(case):
    fn, x, w, flops = case
    cost = jp.cost(lambda w, x: fn(x, w), abstract(*w), abstract(*x))
    assert cost == (np.prod(w), np.prod(w), flops, flops)
    assert all(type(number) is int for number in cost)


@each_contraction
def test_flops_are_the_products_that_are_summed(case):
    # A sum of products of ones counts its terms: a reference without a jaxpr.
    fn, x, w, flops = case
    assert 2 * jnp.sum(fn(jnp.ones(x), jnp.ones(w))) == flops


# The sizes of ragged groups say which weights are read how often.
@pytest.mark.parametrize("name", sorted(CONTRACTIONS.keys() - {"ragged"}))
@pytest.mark.parametrize("seed", range(2))
def test_sparse_flops_are_the_products_with_a_kept_weight(name, seed):
    fn, x, w, flops = CONTRACTIONS[name]
    mask = random_mask(w, seed=seed)
    cost = jp.cost(lambda w, x: fn(x, w), abstract(*w), abstract(*x), mask=mask)
    assert cost.flops == flops
    assert cost.nonzero == mask.sum()
    assert cost.sparse_flops == 2 * jnp.sum(fn(jnp.ones(x), jnp.asarray(mask, F32)))


def test_a_scaled_product_counts_as_a_product():
    def fn(w, x):
        scales = {"lhs_scale": jnp.ones((2, 10, 2)), "rhs_scale": jnp.ones((2, 2, 4))}
        numbers = (((2,), (1,)), ((0,), (0,)))
        return jax.lax.scaled_dot(x, w, **scales, dimension_numbers=numbers)

    cost = jp.cost(fn, abstract(2, 8, 4), abstract(2, 10, 8))
    assert cost.flops == 2 * 2 * 10 * 8 * 4


SAME = {
    "stride 1": ({"padding": "SAME"}, (1, 8, 8, 3), (3, 3, 3, 5), 2 * 64 * 27 * 5),
    "stride 2": (
        {"padding": "SAME", "stride": 2},
        (1, 8, 8, 3),
        (3, 3, 3, 5),
        2 * 16 * 27 * 5,
    ),
    "odd": ({"padding": "SAME", "stride": 2}, (1, 7, 7, 3), (5, 5, 3, 5), 2 * 16 * 375),
    "depthwise": (
        {"padding": "SAME", "groups": 4},
        (1, 8, 8, 4),
        (3, 3, 1, 4),
        2 * 64 * 9 * 4,
    ),
}
each_same = pytest.mark.parametrize("case", SAME.values(), ids=SAME.keys())


@each_same
def test_taps_on_the_padding_count(case):
    options, x, w, flops = case
    fn = functools.partial(conv, **options)
    assert jp.cost(lambda w, x: fn(x, w), abstract(*w), abstract(*x)).flops == flops


@each_same
def test_a_gradient_costs_three_convolutions(case):
    options, x, w, flops = case

    def loss_fn(params):
        return jnp.sum(conv(*params, **options) ** 2)

    assert jp.cost(jax.grad(loss_fn), (abstract(*x), abstract(*w))).flops == 3 * flops


# Models, with hand counts. B = 10 inputs of 8 features.


def mlp(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


SIZES = (8, 16, 16, 4)
MLP = [{"w": abstract(n, m), "b": abstract(1, m)} for n, m in itertools.pairwise(SIZES)]
X = abstract(10, 8)
WEIGHTS = 8 * 16 + 16 * 16 + 16 * 4
MLP_FLOPS = 2 * 10 * WEIGHTS


def nnx_mlp():
    class Model(nnx.Module):
        def __init__(self, rngs):
            pairs = itertools.pairwise(SIZES)
            self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in pairs])

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = nnx.relu(layer(x))
            return self.layers[-1](x)

    graphdef, params = nnx.split(nnx.eval_shape(lambda: Model(nnx.Rngs(0))))
    return lambda p, x: nnx.merge(graphdef, p)(x), params


def linen_mlp():
    layers = [layer for m in SIZES[1:] for layer in (nn.Dense(m), nn.relu)]
    model = nn.Sequential(layers[:-1])
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    return model.apply, variables


def equinox_mlp():
    model = eqx.filter_eval_shape(eqx.nn.MLP, 8, 4, 16, 2, key=jax.random.key(0))
    params, static = eqx.partition(
        model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), params


def plain_mlp():
    return mlp, MLP


MODELS = (plain_mlp, nnx_mlp, linen_mlp, equinox_mlp)


@pytest.mark.parametrize("model", MODELS)
def test_models(model):
    fn, params = model()
    cost = jp.cost(fn, params, X)
    assert cost == (WEIGHTS + 36, WEIGHTS + 36, MLP_FLOPS, MLP_FLOPS)


@pytest.mark.parametrize("model", MODELS)
def test_models_with_a_mask(model):
    fn, params = model()
    mask = jax.tree.map(
        lambda p: random_mask(p.shape, 0.25 if p.size > 16 else 1.0), params
    )
    cost = jp.cost(fn, params, X, mask=mask)
    assert cost == (
        WEIGHTS + 36,
        WEIGHTS // 4 + 36,
        MLP_FLOPS,
        MLP_FLOPS // 4,
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_mask_of_all_true_changes_nothing(model):
    fn, params = model()
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    assert jp.cost(fn, params, X, mask=mask) == jp.cost(fn, params, X)


def test_gradient_of_a_model():
    # Forward, gradients by all weights, gradients by the inputs of all layers but one.
    def loss_fn(params, x):
        return jnp.mean(mlp(params, x) ** 2)

    first = 2 * 10 * 8 * 16
    cost = jp.cost(jax.grad(loss_fn), MLP, X)
    assert cost.flops == 3 * MLP_FLOPS - first
    assert jp.cost(jax.value_and_grad(loss_fn), MLP, X).flops == cost.flops
    # Under a mask forward and input gradients read weights; weight gradients do not.
    mask = jax.tree.map(lambda p: random_mask(p.shape, 0.25), MLP)
    sparse = jp.cost(jax.grad(loss_fn), MLP, X, mask=mask).sparse_flops
    assert sparse == MLP_FLOPS // 4 + (MLP_FLOPS - first) // 4 + MLP_FLOPS


def test_what_nothing_uses_is_not_counted():
    # The gradient of a linear loss does not read the last layer's output.
    def loss_fn(params, x):
        return jnp.sum(mlp(params, x))

    flops = jp.cost(jax.grad(loss_fn), MLP, X).flops
    assert flops == 3 * MLP_FLOPS - 2 * 10 * 8 * 16 - 2 * 10 * 16 * 4


def test_attention():
    batch, length, features, heads = 2, 5, 8, 2
    module = nnx.eval_shape(
        lambda: nnx.MultiHeadAttention(
            heads, features, decode=False, use_bias=False, rngs=nnx.Rngs(0)
        )
    )
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def fn(p, x):
        return nnx.merge(graphdef, p, rest, copy=True)(x)

    x = abstract(batch, length, features)
    projections = 2 * 4 * batch * length * features**2
    products = 2 * 2 * batch * length**2 * features
    mask = jax.tree.map(lambda p: random_mask(p.shape, 0.25), params)
    cost = jp.cost(fn, params, x, mask=mask)
    assert cost.flops == projections + products
    assert cost.sparse_flops == projections // 4 + products


def test_jax_attention_with_grouped_queries():
    q, kv = abstract(2, 5, 4, 8), abstract(2, 5, 2, 8)
    flops = 2 * 2 * (2 * 4 * 5 * 5 * 8)
    assert jp.cost(jax.nn.dot_product_attention, q, kv, kv).flops == flops


@pytest.mark.parametrize("fn", [mlp, jax.grad(lambda p, x: jnp.sum(mlp(p, x) ** 2))])
def test_agrees_with_xla(fn):
    sizes = (256, 512, 512, 128)
    pairs = itertools.pairwise(sizes)
    params = [{"w": abstract(n, m), "b": abstract(1, m)} for n, m in pairs]
    args = params, abstract(128, 256)
    xla = jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]
    assert jp.cost(fn, *args).flops == pytest.approx(xla, rel=0.01)


# Primitives that hold jaxprs.

W, V = abstract(8, 8), abstract(8, 8)
PRODUCT = 2 * 10 * 8 * 8  # The FLOPs of x @ w.


@jax.custom_vjp
def with_vjp(w, x):
    return x @ w


with_vjp.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))


@jax.custom_jvp
def with_jvp(w, x):
    return x @ w


with_jvp.defjvp(lambda p, t: (p[1] @ p[0], p[1] @ t[0] + t[1] @ p[0]))


@jax.custom_batching.custom_vmap
def with_vmap(w, x):
    return x @ w


@with_vmap.def_vmap
def with_vmap_rule(size, batched, w, x):
    return jax.vmap(lambda w, x: x @ w)(w, x), True


def linear(w, x):
    return x @ w


def over_devices(w, x):
    # Every device multiplies all rows by its columns: the same work in all.
    mesh = jax.make_mesh((8,), ("d",))
    shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(None, "d"), P()))
    return shard(linear, out_specs=P(None, "d"))(
        jax.reshard(w, jax.NamedSharding(mesh, P(None, "d"))),
        jax.reshard(x, jax.NamedSharding(mesh, P())),
    )


def scanned(w, x, steps=3):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=steps)[0]


def branched(w, x):
    branches = [lambda x: x, lambda x: x @ w, lambda x: x @ w @ w]
    return jax.lax.switch(jnp.int32(1), branches, x)


def squared_norm(w, x):
    return jnp.sum(linear(w, x) ** 2)


ENTERED = {
    "jit": (jax.jit(linear), 1),
    "jit in jit": (jax.jit(lambda w, x: jax.jit(linear)(w, x)), 1),
    "checkpoint": (jax.checkpoint(linear), 1),
    "custom_vjp": (with_vjp, 1),
    "custom_jvp": (with_jvp, 1),
    "custom_vmap": (with_vmap, 1),
    "scan": (scanned, 3),
    "fori_loop": (
        lambda w, x: jax.lax.fori_loop(0, 5, lambda _, x: linear(w, x), x),
        5,
    ),
    "map": (lambda w, x: jax.lax.map(lambda row: linear(w, row), x), 1),
    "scan of scan": (
        lambda w, x: jax.lax.scan(lambda x, _: (scanned(w, x), None), x, length=2)[0],
        6,
    ),
    "cond": (lambda w, x: jax.lax.cond(x[0, 0] > 0, linear, lambda w, x: x, w, x), 1),
    "switch": (branched, 2),
    "shard_map": (over_devices, 1),
    "vmap": (
        lambda w, x: jax.vmap(linear, (None, 0))(w, jnp.broadcast_to(x, (4, 10, 8))),
        4,
    ),
    "where": (lambda w, x: jnp.where(x > 0, linear(w, x), x), 1),
    "while around": (
        lambda w, x: jax.lax.while_loop(jnp.any, jnp.sin, linear(w, x)),
        1,
    ),
    "grad": (jax.grad(squared_norm), 2),
    "grad, both": (jax.grad(squared_norm, (0, 1)), 3),
    "grad of checkpoint": (
        jax.grad(lambda w, x: jnp.sum(jax.checkpoint(squared_norm)(w, x) ** 2)),
        3,  # Forward, forward again, backward.
    ),
    "grad of custom_vjp": (
        jax.grad(lambda w, x: jnp.sum(with_vjp(w, x) ** 2), (0, 1)),
        3,
    ),
    "grad of scan": (
        jax.grad(lambda w, x: jnp.sum(scanned(w, x) ** 2)),
        3 + 3 + 3,  # XLA too computes the first step's gradient by x.
    ),
    "closed over": (lambda w, x: jnp.ones((10, 8)) @ w, 1),
    "no contraction": (lambda w, x: x + jnp.sum(w), 0),
}


@pytest.mark.parametrize("case", ENTERED.values(), ids=ENTERED.keys())
def test_jaxprs_are_entered(case):
    fn, products = case
    assert jp.cost(fn, W, abstract(10, 8)).flops == products * PRODUCT


def test_a_solve_counts_its_solution_only():
    # custom_linear_solve also holds the products that its derivatives would need.
    def fn(w, x):
        return jnp.linalg.solve(w, x)

    assert jp.cost(fn, abstract(8, 8), abstract(8)).flops == 0


def test_a_pallas_kernel_counts_once_for_each_point_of_its_grid():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    def fn(w, x):
        return pl.pallas_call(
            kernel,
            out_shape=abstract(16, 8),
            grid=(4,),
            in_specs=[
                pl.BlockSpec((4, 8), lambda i: (i, 0)),
                pl.BlockSpec((8, 8), lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((4, 8), lambda i: (i, 0)),
        )(x, w)

    assert jp.cost(fn, W, abstract(16, 8)).flops == 2 * 16 * 8 * 8


def test_a_while_loop_with_a_contraction_is_refused():
    def fn(w, x):
        return jax.lax.while_loop(jnp.any, jax.jit(lambda x: x @ w), x)

    with pytest.raises(ValueError, match=r"inside a while_loop.*jax\.lax\.scan"):
        jp.cost(fn, W, abstract(10, 8))


def test_cond_takes_the_dearest_branch_for_each_number():
    def fn(params, x):
        dense = lambda p, x: x @ p["v"]  # noqa: E731
        sparse = lambda p, x: x @ p["w"] @ p["w"]  # noqa: E731
        return jax.lax.cond(x[0, 0] > 0, dense, sparse, params, x)

    mask = {"w": random_mask((8, 8), 0.25), "v": np.ones((8, 8), bool)}
    cost = jp.cost(fn, {"w": W, "v": V}, abstract(10, 8), mask=mask)
    assert (cost.flops, cost.sparse_flops) == (2 * PRODUCT, PRODUCT)


def test_layers_stacked_for_scan():
    def fn(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]

    mask = np.stack([random_mask((8, 8), density) for density in (1, 0.5, 0.25, 0.25)])
    cost = jp.cost(fn, {"w": abstract(4, 8, 8)}, abstract(10, 8), mask={"w": mask})
    assert (cost.flops, cost.sparse_flops) == (4 * PRODUCT, 2 * PRODUCT)


# How a density is followed: params a and b (8, 8), of densities 1/4 and 1/2, and x.
# Each function contracts once; beside it the fraction of its FLOPs that remains.

A, B = Fraction(1, 4), Fraction(1, 2)
KEEP = {"a": random_mask((8, 8), 0.25), "b": random_mask((8, 8), 0.5, seed=1)}


def carried(a, x, body):
    return jax.lax.scan(lambda a, _: (body(a), None), a, length=3)[0]


def weighted_sum(c, d):
    return c + 2 * d


FOLLOWED = {
    "transpose": (lambda a, b, x: x @ a.T, A),
    "cast": (lambda a, b, x: x @ a.astype(jnp.bfloat16).astype(F32), A),
    "negation": (lambda a, b, x: x @ -a, A),
    "constant factor": (lambda a, b, x: x @ (2 * a / 3), A),
    "dense factor": (lambda a, b, x: x @ (a * jnp.sum(x)), A),
    "divided by its norm": (lambda a, b, x: x @ (a / jnp.sqrt(jnp.sum(a**2))), A),
    "odd function": (lambda a, b, x: x @ jnp.tanh(a), A),
    "relu": (lambda a, b, x: x @ jax.nn.relu(a), A),
    "square": (lambda a, b, x: x @ (a * a), A),
    "cube": (lambda a, b, x: x @ a**3, A),
    "same zeros": (lambda a, b, x: x @ (a + (jnp.round(a) - a)), A),
    "stop_gradient": (lambda a, b, x: x @ jax.lax.stop_gradient(a), A),
    "reshape": (lambda a, b, x: x.reshape(20, 4) @ a.reshape(4, 16), A),
    "slice": (lambda a, b, x: x[:, :4] @ a[:4], A),
    "dynamic slice": (
        lambda a, b, x: x[:, :4] @ jax.lax.dynamic_slice(a, (2, 0), (4, 8)),
        A,
    ),
    "gather": (lambda a, b, x: x @ jnp.take(a, jnp.arange(3), axis=1), A),
    "broadcast": (
        lambda a, b, x: jnp.broadcast_to(x, (2, 10, 8)) @ jnp.stack([a, a]),
        A,
    ),
    "padding": (lambda a, b, x: x @ jnp.pad(a[:6], ((1, 1), (0, 0))), A),
    "padding of ones": (
        lambda a, b, x: x @ jnp.pad(a[:6], ((1, 1), (0, 0)), constant_values=1),
        1,
    ),
    "where": (lambda a, b, x: x @ jnp.where(x[0, 0] > 0, a, 0), A),
    "where, else dense": (lambda a, b, x: x @ jnp.where(a > 0, a, jnp.ones_like(a)), 1),
    "concatenation": (
        lambda a, b, x: x @ jnp.concatenate([a, b[:, :4]], 1),
        Fraction(1, 3),
    ),
    "concatenation with x": (
        lambda a, b, x: x @ jnp.concatenate([a, x.T[:, :8]], 1),
        1,
    ),
    "split": (lambda a, b, x: x @ jnp.split(a, 2, axis=1)[1], A),
    "product": (lambda a, b, x: x @ (a * b), A * B),
    "product of halves": (lambda a, b, x: x[:, :4] @ (a[:4] * a[4:]), A * A),
    "product of split halves": (
        lambda a, b, x: x[:, :4] @ jnp.multiply(*jnp.split(a, 2)),
        A * A,
    ),
    "sum": (lambda a, b, x: x @ (a + b), A + B),
    "sum, at most 1": (lambda a, b, x: x @ (b + b.T + a), 1),
    "both operands": (lambda a, b, x: a @ b + x[:8], A * B),
    "sum with a dense": (lambda a, b, x: x @ (a + jnp.mean(x)), 1),
    "zero not kept": (lambda a, b, x: x @ jnp.exp(a), 1),
    "centred": (lambda a, b, x: x @ (a - jnp.mean(a)), 1),
    "cumulative": (lambda a, b, x: x @ jnp.cumsum(a, 0), 1),
    "activations": (lambda a, b, x: x @ x.T, 1),
    "zeros": (lambda a, b, x: jnp.zeros((10, 8)) @ a, A),
    "jit": (lambda a, b, x: x @ jax.jit(lambda a: -a.T)(a), A),
    "checkpoint": (lambda a, b, x: x @ jax.checkpoint(jnp.sin)(a), A),
    "scan, constant": (lambda a, b, x: scanned(a, x), A),
    "scan, stacked": (
        lambda a, b, x: x @ jax.lax.scan(lambda _, r: (None, 2 * r), None, a)[1],
        A,
    ),
    "scan, carry kept": (lambda a, b, x: x @ carried(a, x, lambda a: 2 * a), A),
    "scan, carry filled": (lambda a, b, x: x @ carried(a, x, lambda a: a + 1), 1),
    "scan, zero carry": (
        lambda a, b, x: (
            x @ jax.lax.scan(lambda c, r: (c + r, None), jnp.zeros(8), a)[0]
        ),
        1,
    ),
    "scan, zero carry filled": (
        lambda a, b, x: x @ (a + carried(jnp.zeros((8, 8)), x, lambda c: c + x[:8])),
        1,
    ),
    "scan, carries that part": (
        lambda a, b, x: x @ jnp.multiply(*carried((a, a), x, lambda c: (c[0], c[1].T))),
        A * A,
    ),
    "cond, the same": (
        lambda a, b, x: x @ jax.lax.cond(x[0, 0] > 0, lambda a: a, jnp.negative, a),
        A,
    ),
    "cond, or dense": (
        lambda a, b, x: x @ jax.lax.cond(x[0, 0] > 0, lambda a: a, jnp.cos, a),
        1,
    ),
    "shard_map": (lambda a, b, x: over_devices(a, x), A),
    "reduction inside": (lambda a, b, x: x @ jnp.sum(a.reshape(8, 2, 4), 1), 1),
    "reduction by a function": (
        lambda a, b, x: x @ jax.lax.reduce(jnp.stack([a, a]), 0.0, weighted_sum, (0,)),
        1,
    ),
    "its own mask": (lambda a, b, x: x @ jp.apply_mask(a, jnp.asarray(KEEP["a"])), A),
}


@pytest.mark.parametrize("case", FOLLOWED.values(), ids=FOLLOWED.keys())
def test_densities_are_followed(case):
    fn, fraction = case
    params = {"a": abstract(8, 8), "b": abstract(8, 8)}

    def apply_fn(p, x):
        return fn(p["a"], p["b"], x)

    cost = jp.cost(apply_fn, params, abstract(10, 8), mask=KEEP)
    assert cost.flops > 0
    assert cost.sparse_flops == round(cost.flops * fraction)
    every = jax.tree.map(np.ones_like, KEEP)
    dense = jp.cost(apply_fn, params, abstract(10, 8), mask=every)
    assert dense.sparse_flops == cost.flops


def test_activations_are_dense_whatever_scales_them():
    def fn(p, x):
        hidden = x @ p["a"] * p["scale"][None] + p["bias"][None]
        return jnp.tanh(hidden) @ p["b"]

    params = {"a": W, "b": V, "scale": abstract(8), "bias": abstract(8)}
    half = jnp.arange(8) < 4
    cost = jp.cost(
        fn, params, abstract(10, 8), mask={**KEEP, "scale": half, "bias": half}
    )
    plain = jp.cost(
        lambda p, x: x @ p["a"] @ p["b"], {"a": W, "b": V}, abstract(10, 8), mask=KEEP
    )
    assert cost.sparse_flops == plain.sparse_flops


# Embeddings (10, 8), half of them masked, that four tokens look up; beside each way to
# look up the FLOPs of its own products that remain.

TOKENS = jax.ShapeDtypeStruct((4,), jnp.int32)


def by_scan(emb, tokens):
    return jax.lax.scan(lambda _, t: (None, emb[t]), None, tokens)[1]


def by_loop(emb, tokens):
    def body(i, rows):
        row = jax.lax.dynamic_slice(emb, (tokens[i], 0), (1, 8))
        return jax.lax.dynamic_update_slice(rows, row, (i, 0))

    return jax.lax.fori_loop(0, 4, body, jnp.zeros((4, 8)))


def padded(emb, tokens):
    return emb[jnp.concatenate([jnp.zeros(1, jnp.int32), tokens[1:] % 10])]


def one_hot(emb, tokens):
    return jax.nn.one_hot(tokens, 10) @ emb


def with_class_token(emb, tokens):
    return jnp.concatenate([emb[:1], emb[tokens[1:]]])


LOOKUPS = {
    "index": (lambda emb, t: emb[t], 0),
    "take": (lambda emb, t: jnp.take(emb, t, axis=0), 0),
    "take, clipped": (lambda emb, t: jnp.take(emb, t, axis=0, mode="clip"), 0),
    "transposed": (lambda emb, t: emb.T[:, t].T, 0),
    "half precision": (lambda emb, t: emb.astype(jnp.bfloat16)[t].astype(F32), 0),
    "vmap": (lambda emb, t: jax.vmap(lambda t: emb[t])(t), 0),
    "jit": (lambda emb, t: jax.jit(lambda t: emb[t])(t), 0),
    "scan": (by_scan, 0),
    "loop": (by_loop, 0),
    "padded": (padded, 0),
    "class token": (with_class_token, 0),
    "one-hot": (one_hot, 4 * 10 * 8),
    "best": (lambda emb, t: emb[jnp.argmax(one_hot(emb, t), 1)], 4 * 10 * 8),
    "cast": (lambda emb, t: jnp.tile(t.astype(F32)[:, None], 8) * emb[:4], 0),
}


@pytest.mark.parametrize("case", LOOKUPS.values(), ids=LOOKUPS.keys())
def test_a_looked_up_row_is_an_activation(case):
    look_up, own = case

    def fn(p, tokens):
        hidden = look_up(p["emb"], tokens)
        norm = jax.lax.rsqrt((hidden**2).mean(1, keepdims=True) + 1e-6)
        hidden = jnp.tanh((hidden * norm * p["scale"]) @ p["w"])
        return hidden @ p["emb"].T  # The head shares the embeddings.

    params = {"emb": abstract(10, 8), "scale": abstract(1, 8), "w": W}
    mask = {"emb": random_mask((10, 8), 0.5), "w": random_mask((8, 8), 0.25)}
    mask["scale"] = np.arange(8)[None] < 4
    cost = jp.cost(fn, params, TOKENS, mask=mask)
    assert cost.sparse_flops == own + 2 * 4 * 8 * 8 // 4 + 2 * 4 * 8 * 10 // 2


def by_counter(p, x, _):
    body = lambda i, x: x @ jax.lax.dynamic_index_in_dim(p, i, keepdims=False)  # noqa: E731
    return jax.lax.fori_loop(0, 3, body, x)


STILL_WEIGHTS = {
    "loop over a stack": (by_counter, jnp.int32(1), 3),
    "loop by a table": (
        lambda p, x, _: jax.lax.scan(lambda x, i: (x @ p[i], None), x, np.arange(3))[0],
        jnp.int32(1),
        3,
    ),
    "shuffled": (lambda p, x, _: x @ p[0][:, np.arange(8)[::-1]], jnp.int32(1), 1),
    "masked": (lambda p, x, m: x @ (p[0] * m), jnp.ones((8, 8), bool), 1),
    "chosen": (lambda p, x, m: x @ jnp.where(m, p[0], 0), jnp.ones((8, 8), bool), 1),
    "dropped": (
        lambda p, x, k: x @ jnp.where(jax.random.bernoulli(k, 0.5, (8, 8)), p[0], 0),
        jax.random.key(0),
        1,
    ),
}


@pytest.mark.parametrize("case", STILL_WEIGHTS.values(), ids=STILL_WEIGHTS.keys())
def test_what_the_data_does_not_choose_stays_a_weight(case):
    fn, data, products = case
    mask = random_mask((3, 8, 8), 0.25)
    cost = jp.cost(fn, abstract(3, 8, 8), abstract(10, 8), data, mask=mask)
    assert (cost.flops, cost.sparse_flops) == (
        products * PRODUCT,
        products * PRODUCT // 4,
    )


def test_low_rank_factors_multiply_then_are_dense():
    # x @ (a @ b): the inner product reads two weights, the outer a dense result.
    def fn(p, x):
        return x @ (p["a"] @ p["b"])

    cost = jp.cost(fn, {"a": W, "b": V}, abstract(10, 8), mask=KEEP)
    assert cost.flops == PRODUCT + 2 * 8 * 8 * 8
    assert cost.sparse_flops == PRODUCT + 2 * 8 * 8 * 8 // 8


def test_emptied_leaves_cost_nothing():
    mask = jax.tree.map(lambda p: np.zeros(p.shape, bool), MLP)
    assert jp.cost(mlp, MLP, X, mask=mask)[1:] == (0, MLP_FLOPS, 0)


def test_counts_beyond_64_bits():
    n = 2**21
    cost = jp.cost(linear, abstract(n, n), abstract(n, n))
    assert cost[1:] == (n**2, 2 * n**3, 2 * n**3)


# Bad input.


def traced_mask(mask):
    return jax.jit(lambda m: jnp.float32(jp.cost(linear, W, X, mask=m).flops))(mask)


BAD = {
    "wrong dtype": (
        TypeError,
        "mask: the leaf w is float32",
        {"w": np.ones((8, 8), "f")},
    ),
    "wrong structure": (
        ValueError,
        "lacks w and it has v",
        {"v": np.ones((8, 8), bool)},
    ),
    "wrong shape": (
        ValueError,
        r"leaf w has shape \(8, 4\)",
        {"w": np.ones((8, 4), bool)},
    ),
    "abstract": (
        TypeError,
        "leaf w is a ShapeDtypeStruct",
        {"w": jax.ShapeDtypeStruct((8, 8), bool)},
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_masks(case):
    error, match, mask = case
    with pytest.raises(error, match=match):
        jp.cost(lambda p, x: x @ p["w"], {"w": W}, X, mask=mask)


def test_a_traced_mask_is_refused():
    with pytest.raises(TypeError, match=r"outside jit.*jp\.sparsity"):
        traced_mask(np.ones((8, 8), bool))


def test_a_leaf_that_is_not_an_array_is_named():
    model = eqx.nn.MLP(8, 4, 16, 2, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"leaf activation is a .*equinox\.partition"):
        jp.cost(lambda m, x: jax.vmap(m)(x), model, X)
