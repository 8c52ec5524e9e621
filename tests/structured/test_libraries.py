"""Layers as Flax Linen, Equinox and JAX itself ship them."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxprune import structured
from tests.structured.harness import arrays, check, normal, random_scores, randomized

X = normal(2, 5, 8)
KEY = jax.random.key(0)


def found(fn, params, **options):
    groups = check(fn, params, X, **options)
    return [(group.name.split("/", 1)[-1], group.size) for group in groups]


def linen(module):
    return module.apply, randomized(jax.eval_shape(module.init, KEY, X))


def test_jaxs_own_attention():
    def fn(params, x):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, params[n]) for n in "qkv")
        x = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return jnp.einsum("bthk,hko->bto", x, params["o"])

    params = arrays(q=(8, 2, 4), k=(8, 2, 4), v=(8, 2, 4), o=(2, 4, 3))
    assert found(fn, params) == [("q axis 1", 2), ("q axis 2", 4), ("v", 4)]


def test_linen_attention():
    apply, params = linen(nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8))
    assert [size for _, size in found(apply, params)] == [2, 4, 4]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        hidden = nn.gelu(nn.Dense(12)(nn.LayerNorm()(x)))
        return x + nn.Dense(6)(hidden), None


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers()(nn.Dense(6)(x), None)
        return nn.Dense(2)(x)


def test_linen_scan_of_remat_layers():
    assert [size for _, size in found(*linen(Deep()))] == [6, 12]


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(6)(nn.relu(nn.Dense(12)(x))), None


def test_linen_scan_hoists_a_function_without_outputs():
    layers = nn.scan(
        Plain, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(layers()(nn.Dense(6)(x), None)[0])

    assert [size for _, size in found(*linen(Net()))] == [6, 12]


def test_the_moments_of_linens_parameters_are_narrowed_without_their_statistics():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=True)
            return nn.Dense(3)(nn.relu(norm(nn.Dense(8)(x))))

    fn, variables = linen(Net())
    groups = structured.channel_groups(fn, variables, X)
    mask = structured.structured_mask(random_scores(groups), groups, variables, 0.5)
    small_fn, small = structured.shrink(fn, variables, mask, groups)
    tx = optax.adam(0.1)
    state = structured.narrow(tx.init(variables["params"]), mask, groups)

    def loss(params):
        return jnp.sum(small_fn({**small, "params": params}, X) ** 2)

    updates, _ = tx.update(jax.grad(loss)(small["params"]), state)
    chex.assert_trees_all_equal_shapes(updates, small["params"])


def test_linen_recurrence():
    apply, cell = linen(nn.RNN(nn.LSTMCell(6)))

    def fn(params, x):
        return apply(params["cell"], x) @ params["out"]

    params = {"cell": cell, **arrays(out=(6, 2))}
    assert [size for _, size in found(fn, params, work=False)] == [6]


def test_equinox_attention_loses_whole_heads():
    model = eqx.nn.MultiheadAttention(2, 8, qk_size=3, vo_size=5, key=KEY)
    params, static = eqx.partition(model, eqx.is_array)

    def fn(params, x):
        return jax.vmap(lambda row: eqx.combine(params, static)(row, row, row))(x)

    assert found(fn, params) == [("weight", 2)]


def test_equinox_mlp_and_recurrence():
    mlp, rest = eqx.partition(eqx.nn.MLP(8, 6, 6, 2, key=KEY), eqx.is_array)
    cell, static = eqx.partition(eqx.nn.GRUCell(6, 4, key=KEY), eqx.is_array)

    def fn(params, x):
        def one(row):
            row = jax.vmap(eqx.combine(params["mlp"], rest))(row)
            run = eqx.combine(params["cell"], static)
            return jax.lax.scan(lambda h, y: (run(y, h), None), jnp.zeros(4), row)[0]

        return jax.vmap(one)(x) @ params["out"]

    params = {"mlp": mlp, "cell": cell, **arrays(out=(4, 2))}
    sizes = [size for _, size in found(fn, params, sparsity=0.3, work=False)]
    assert sizes == [6, 6, 6, 4]
