"""Every kind of layer: the narrowed module is one that is built at half the size."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxprune import structured
from tests.helpers import QUICK
from tests.structured.harness import close, normal, random_scores, randomized

KEY = jax.random.key(0)
SEQUENCE = normal(2, 7, 5)  # [batch, time, features]
IMAGE = normal(3, 6, 6)  # [features, height, width]
TOKENS = jnp.arange(6) % 4


class Chain(nnx.Module):
    """Layers one after the other."""

    def __init__(self, *layers):
        self.layers = nnx.List(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Residual(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return x + self.layer(x)


class EqxScan(eqx.Module):
    """Runs an Equinox cell over the first axis."""

    cell: eqx.Module

    def __call__(self, xs):
        zero = jnp.zeros(self.cell.hidden_size)
        lstm = isinstance(self.cell, eqx.nn.LSTMCell)

        def turn(state, x):
            state = self.cell(x, state)
            return state, state[0] if lstm else state

        return jax.lax.scan(turn, (zero, zero) if lstm else zero, xs)[1]


class EqxChain(eqx.Module):
    layers: list

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Each(eqx.Module):
    """A layer for each row of its input."""

    layer: eqx.Module

    def __call__(self, xs):
        return jax.vmap(self.layer)(xs)


class SelfAttention(eqx.Module):
    attention: eqx.nn.MultiheadAttention

    def __call__(self, x):
        return self.attention(x, x, x)


def cells(n):
    rngs, kinds = nnx.Rngs(0), (nnx.LSTMCell, nnx.SimpleCell, nnx.OptimizedLSTMCell)
    sizes = [(5, 6 * n), (6 * n, 4 * n), (4 * n, 8 * n), (8 * n, 2 * n)]
    made = [
        kind(*size, rngs=rngs)
        for kind, size in zip((*kinds, nnx.GRUCell), sizes, strict=True)
    ]
    return Chain(*map(nnx.RNN, made), nnx.Linear(2 * n, 3, rngs=rngs))


def bidirectional(n):
    rngs = nnx.Rngs(0)
    both = [nnx.RNN(nnx.GRUCell(5, 4 * n, rngs=rngs)) for _ in range(2)]
    return Chain(nnx.Bidirectional(*both), nnx.Linear(8 * n, 3, rngs=rngs))


def linear(n):
    rngs, heads = nnx.Rngs(0), (2 * n, 3 * n)
    base = nnx.Linear(6 * n, 3 * n, rngs=rngs)
    return Chain(
        nnx.LinearGeneral(5, heads, rngs=rngs),
        nnx.LinearGeneral(heads, 4 * n, axis=(-2, -1), rngs=rngs),
        nnx.LoRALinear(4 * n, 6 * n, lora_rank=2 * n, rngs=rngs),
        nnx.LoRA(6 * n, 2 * n, 3 * n, base_module=base, rngs=rngs),
        nnx.Einsum("bti,ihd->bthd", (3 * n, *heads), heads, rngs=rngs),
        nnx.Einsum("bthd,hdo->bto", (*heads, 3), (3,), rngs=rngs),
    )


def attention(heads=2, dims=3, kv_heads=None, **options):
    """A table row: attention in a residual stream, all of whose sizes are halved."""

    def make(n):
        rngs = nnx.Rngs(0)
        layer = nnx.MultiHeadAttention(
            heads * n,
            4 * n,
            heads * dims * n * n,
            num_kv_heads=kv_heads and kv_heads * n,
            decode=False,
            rngs=rngs,
            **options,
        )
        first, last = nnx.Linear(5, 4 * n, rngs=rngs), nnx.Linear(4 * n, 3, rngs=rngs)
        return Chain(first, Residual(layer), last)

    return make


def equinox_cells(n):
    lstm, gru = eqx.nn.LSTMCell, functools.partial(eqx.nn.GRUCell, key=KEY)
    return EqxChain(
        [
            EqxScan(lstm(5, 4 * n, key=KEY)),
            EqxScan(gru(4 * n, 3 * n)),
            EqxScan(gru(3 * n, 2 * n, use_bias=False)),
            Each(eqx.nn.Linear(2 * n, 3, key=KEY)),
        ]
    )


def equinox_attention(heads, dims, **options):
    """A table row; with several heads whole heads go, with one its dimensions."""

    def make(n):
        some, each = (heads * n, dims) if heads > 1 else (1, dims * n)
        layer = eqx.nn.MultiheadAttention(
            some, 4 * n, qk_size=each, vo_size=2 * each, key=KEY, **options
        )
        first, last = (eqx.nn.Linear(*s, key=KEY) for s in ((5, 4 * n), (4 * n, 3)))
        return EqxChain([Each(first), SelfAttention(layer), Each(last)])

    return make


def equinox_images(n):
    return EqxChain(
        [
            eqx.nn.Conv2d(3, 4 * n, 3, key=KEY),
            eqx.nn.GroupNorm(2 * n, 4 * n),
            eqx.nn.PReLU(),
            eqx.nn.Conv2d(4 * n, 6 * n, 1, groups=2 * n, key=KEY),
            eqx.nn.ConvTranspose2d(6 * n, 2 * n, 2, use_bias=False, key=KEY),
            eqx.nn.Lambda(lambda x: x.mean((1, 2))),
            eqx.nn.LayerNorm(2 * n),
            eqx.nn.MLP(2 * n, 4 * n, 6 * n, 2, key=KEY),
            eqx.nn.RMSNorm(4 * n),
            eqx.nn.Linear(4 * n, "scalar", key=KEY),
        ]
    )


def equinox_words(n):
    return EqxChain(
        [
            Each(eqx.nn.Embedding(4, 6 * n, key=KEY)),
            Each(eqx.nn.Linear(6 * n, 3, key=KEY)),
        ]
    )


normalized = attention(normalize_qk=True, dropout_rate=0.1)
NORMED = normalized, equinox_images

ROWS = {
    "cells": (cells, SEQUENCE),
    "Bidirectional": (bidirectional, SEQUENCE),
    "linear": (linear, SEQUENCE),
    "attention": (attention(), SEQUENCE),
    "grouped queries": (attention(4, 2, 2, use_bias=False), SEQUENCE),
    "normalized queries": (normalized, SEQUENCE),
    "Equinox cells": (equinox_cells, SEQUENCE[0]),
    "Equinox heads": (equinox_attention(2, 3, use_query_bias=True), SEQUENCE[0]),
    "Equinox dimensions": (equinox_attention(1, 3, use_query_bias=True), SEQUENCE[0]),
    "Equinox images": (equinox_images, IMAGE),
    "Equinox words": (equinox_words, TOKENS),
}


def parts(model):
    """The model's function of its arrays, the arrays, and everything else."""
    if isinstance(model, nnx.Module):
        model.eval()
        static, state = nnx.split(model)
        return (lambda p, x: nnx.merge(static, p, copy=True)(x)), state, static
    arrays, static = eqx.partition(model, eqx.is_array)
    whole = jax.tree.structure(model)
    return (lambda p, x: eqx.combine(p, static)(x)), arrays, whole


def random_arrays(tree):
    """The tree with random weights; keys and other state stay."""
    floats = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
    new = iter(
        jax.tree.leaves(randomized([x for x in jax.tree.leaves(tree) if floats(x)]))
    )
    return jax.tree.map(lambda leaf: next(new) if floats(leaf) else leaf, tree)


def combined(model, arrays):
    if isinstance(model, nnx.Module):
        return nnx.merge(nnx.split(model)[0], arrays, copy=True)
    return eqx.combine(arrays, eqx.partition(model, eqx.is_array)[1])


def halved(model, x, **options):
    """The model with random weights; its function, arrays, and a mask of half of it."""
    fn, arrays, _ = parts(model)
    arrays = random_arrays(arrays)
    groups = structured.channel_groups(fn, arrays, x)
    mask = structured.structured_mask(
        random_scores(groups), groups, arrays, 0.5, scope="group", **options
    )
    return combined(model, arrays), fn, arrays, mask, groups


@pytest.mark.parametrize(("make", "x"), ROWS.values(), ids=ROWS.keys())
def test_the_narrowed_module_is_the_one_of_half_the_size(make, x):
    model, fn, arrays, mask, groups = halved(make(2), x)
    narrow = structured.narrow_module(model, mask, groups)
    run, found, static = parts(narrow)
    _, fresh, expected = parts(make(1))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, fresh)
    assert static == expected  # Every attribute of every layer.
    masked = jax.tree.map(
        lambda a, m: a if m.all() else jnp.where(m, a, 0), arrays, mask
    )
    if make in NORMED:  # A narrow norm means over fewer channels.
        fn, masked = structured.shrink(fn, arrays, mask, groups, mean_width="new")
    quick = functools.partial(jax.jit, compiler_options=QUICK)
    close(quick(run)(found, x), quick(fn)(masked, x))
    assert parts(model)[2] == parts(make(2))[2]  # It is left as it was.


class OwnCell(nnx.RNNCellBase):
    def __init__(self, n):
        self.hidden_features = n
        self.mix = nnx.Linear(5 + n, n, rngs=nnx.Rngs(0))

    def __call__(self, carry, x):
        carry = nnx.tanh(self.mix(jnp.concatenate([x, carry], -1)))
        return carry, carry

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], self.hidden_features))

    @property
    def num_feature_axes(self):
        return 1


class OwnLSTM(nnx.LSTMCell):
    """A subclass may do anything with its parent's sizes."""


class OwnScan(eqx.Module):
    """As in Equinox's documentation."""

    hidden_size: int
    cell: eqx.nn.GRUCell

    def __call__(self, xs):
        def turn(state, x):
            state = self.cell(x, state)
            return state, state

        return jax.lax.scan(turn, jnp.zeros(self.hidden_size), xs)[1]


class Scaled(nnx.Module):
    def __init__(self, width):
        self.shape = (width,)

    def __call__(self, x):
        return x / jnp.sqrt(self.shape[0])


def nnx_between(layer):
    first, last = nnx.Linear(5, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    return Chain(first, layer, last)


def eqx_between(*layers):
    first, last = eqx.nn.Linear(5, 8, key=KEY), eqx.nn.Linear(8, 3, key=KEY)
    return EqxChain([first, *layers, last])


def rotary(**options):
    rope = functools.partial(nnx.dot_product_attention_with_rope, rope=nnx.RoPE())
    return attention(2, 4, attention_fn=rope, **options)(1)


X = SEQUENCE[0, 0]
NAMED = "narrow_module does not know what depends on it.*Use shrink"
REFUSED = {
    "own cell": (
        lambda: Chain(nnx.RNN(OwnCell(8)), nnx.Linear(8, 3, rngs=nnx.Rngs(0))),
        SEQUENCE,
        f"layers/0/cell is a OwnCell: it holds hidden_features 8.*{NAMED}",
    ),
    "own subclass": (
        lambda: Chain(
            nnx.RNN(OwnLSTM(5, 8, rngs=nnx.Rngs(0))), nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        ),
        SEQUENCE,
        f"layers/0/cell is a OwnLSTM: it holds hidden_features 8.*{NAMED}",
    ),
    "own number": (
        lambda: EqxChain(
            [
                OwnScan(8, eqx.nn.GRUCell(5, 8, key=KEY)),
                Each(eqx.nn.Linear(8, 3, key=KEY)),
            ]
        ),
        SEQUENCE[0],
        f"layers/0 is a OwnScan: it holds hidden_size 8.*{NAMED}",
    ),
    "own shape": (
        lambda: nnx_between(Scaled(8)),
        X,
        f"layers/1 is a Scaled: it holds shape 8, .*{NAMED}",
    ),
    "a wrapper": (
        lambda: nnx_between(
            nnx.WeightNorm(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
        ),
        X,
        "layers/1 is a WeightNorm: narrow_module does not know what depends on",
    ),
    "groups without arrays": (
        lambda: nnx_between(
            nnx.GroupNorm(8, 4, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
        ),
        X[None],
        f"layers/1 is a GroupNorm: it holds the number 4.*{NAMED}",
    ),
    "groups without channels": (
        lambda: eqx_between(eqx.nn.GroupNorm(4, channelwise_affine=False)),
        X,
        f"layers/1 is a GroupNorm: it holds the number 4.*{NAMED}",
    ),
    "a norm without arrays": (
        lambda: eqx_between(eqx.nn.LayerNorm(8, use_weight=False, use_bias=False)),
        X,
        f"layers/1 is a LayerNorm: it holds the number 8.*{NAMED}",
    ),
    "an array twice": (
        lambda: Shares(),
        X,
        "is a Shared: narrow_module does not know what depends on",
    ),
}
if hasattr(nnx, "RoPE"):  # From Flax 0.12.9 on.
    REFUSED["rotated dimensions"] = (
        rotary,
        SEQUENCE,
        "layers/1/layer is a MultiHeadAttention: its attention_fn may depend on",
    )


class Shares(eqx.Module):
    both: eqx.nn.Shared

    def __init__(self):
        first, last = (eqx.nn.Linear(*s, False, key=KEY) for s in ((5, 8), (8, 5)))
        self.both = eqx.nn.Shared(
            (first, last), lambda pair: pair[1].weight, lambda pair: pair[0].weight.T
        )

    def __call__(self, x):
        first, last = self.both()
        return last(first(x))


@pytest.mark.parametrize(("make", "x", "match"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_not_compute_the_same_is_refused_by_name(make, x, match):
    model, _, _, mask, groups = halved(make(), x)
    assert groups
    with pytest.raises(TypeError, match=match):
        structured.narrow_module(model, mask, groups)


def test_one_number_cannot_be_two_sizes():
    def narrowed(make, x, protect):
        model, _, _, mask, groups = halved(make(2), x, protect=protect)
        return structured.narrow_module(model, mask, groups)

    with pytest.raises(TypeError, match=r"head_dim cannot express.*scope=\"group\""):
        narrowed(attention(), SEQUENCE, ["layers/1/layer/value/kernel/value"])
    mlp = lambda n: eqx.nn.MLP(5, 3, 4 * n, 2, key=KEY)  # noqa: E731
    match = r"hidden layers keep \[8, 4\] features, but it has one width_size"
    with pytest.raises(TypeError, match=match):
        narrowed(mlp, X, ["layers/0/weight"])


@pytest.mark.skipif(not hasattr(nnx, "RoPE"), reason="not in this version of Flax")
def test_rotary_attention_loses_whole_heads():
    model, fn, arrays, _, groups = halved(rotary(), SEQUENCE)
    others = [group.name for group in groups if not group.name.endswith("axis 1")]
    _, _, _, mask, _ = halved(model, SEQUENCE, protect=others)
    small_fn, small = structured.shrink(fn, arrays, mask, groups, mean_width="new")
    narrow = structured.narrow_module(model, mask, groups)
    layer = narrow.layers[1].layer
    assert (layer.num_heads, layer.head_dim) == (1, 4)
    close(narrow(SEQUENCE), small_fn(small, SEQUENCE))


def test_a_cache_of_the_old_size_is_refused():
    make = attention()
    model, _, _, mask, groups = halved(make(2), SEQUENCE)
    model.layers[1].layer.init_cache((2, 7, 8))
    with pytest.raises(TypeError, match=r"cache has the old sizes.*call init_cache"):
        structured.narrow_module(model, mask, groups)
