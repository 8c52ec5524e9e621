"""Narrowed NNX modules compute what the small function does, with their own layers."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxprune import structured
from tests.helpers import QUICK
from tests.structured.harness import close, normal, random_scores, randomized

X = normal(2, 6, 6, 3)
jit = functools.partial(jax.jit, compiler_options=QUICK)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.depthwise = nnx.Conv(8, 16, (3, 3), feature_group_count=8, rngs=rngs)
        self.groups = nnx.GroupNorm(16, 4, rngs=rngs)
        self.grouped = nnx.Conv(16, 8, (3, 3), feature_group_count=4, rngs=rngs)
        self.up = nnx.ConvTranspose(8, 6, (2, 2), strides=2, rngs=rngs)
        self.back = nnx.ConvTranspose(
            6, 5, (2, 2), transpose_kernel=True, strides=2, rngs=rngs
        )
        self.instance = nnx.InstanceNorm(5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.hidden = nnx.Linear(5, 7, rngs=rngs)
        self.layer = nnx.LayerNorm(7, rngs=rngs)
        self.rms = nnx.RMSNorm(7, rngs=rngs)
        self.head = nnx.Linear(7, 2, rngs=rngs)

    def __call__(self, x):
        x = self.groups(self.depthwise(nnx.relu(self.norm(self.first(x)))))
        x = nnx.relu(self.back(self.up(self.grouped(x))))
        x = self.drop(self.instance(x)).mean((1, 2))
        return self.head(self.rms(self.layer(nnx.tanh(self.hidden(x)))))


class Words(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(9, 6, rngs=rngs)
        self.mix = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.embed.attend(x + nnx.gelu(self.mix(x)))


def prepared(model, pure=False):
    """The model with random state, its function of that state, and the state."""
    model.eval()
    state = randomized(nnx.state(model, nnx.Not(nnx.RngState)))
    nnx.update(model, state)
    whole = nnx.split(model)

    def fn(state, x):
        model = nnx.merge(*whole, copy=True)
        nnx.update(model, state)
        return model(x)

    return fn, nnx.to_pure_dict(state) if pure else state


def run(model):
    """The outputs for X, in one program: layer by layer takes far longer to compile."""
    graphdef, state = nnx.split(model)
    return jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, X)


def masked_half(fn, state, x, sparsity=0.5, **options):
    groups = structured.channel_groups(fn, state, x)
    scores = random_scores(groups)
    mask = structured.structured_mask(scores, groups, state, sparsity, **options)
    return mask, groups


@pytest.mark.parametrize("pure", [False, True])
def test_every_kind_of_layer_computes_what_the_small_function_does(pure):
    model = Net(nnx.Rngs(0))
    fn, state = prepared(model, pure)
    before = run(model)
    mask, groups = masked_half(fn, state, X, scope="group")
    small_fn, small = structured.shrink(fn, state, mask, groups, mean_width="new")
    narrow = structured.narrow_module(model, mask, groups)
    close(run(narrow), jit(small_fn)(small, X))
    assert [narrow.first.out_features, narrow.norm.num_features] == [4, 4]
    depthwise, grouped = narrow.depthwise, narrow.grouped
    assert (depthwise.in_features, depthwise.feature_group_count) == (4, 4)
    assert (grouped.in_features, grouped.feature_group_count) == (8, 2)
    assert (narrow.groups.num_groups, grouped.kernel_shape) == (2, (3, 3, 4, 4))
    assert (narrow.up.in_features, narrow.up.out_features) == (4, 3)
    assert (narrow.back.in_features, narrow.back.out_features) == (3, 3)
    assert (narrow.hidden.in_features, narrow.head.in_features) == (3, 3)
    close(run(model), before)  # It is left as it was.


def test_tied_embeddings():
    model, tokens = Words(nnx.Rngs(0)), jnp.arange(8).reshape(2, 4)
    fn, state = prepared(model)
    mask, groups = masked_half(fn, state, tokens)
    small_fn, small = structured.shrink(fn, state, mask, groups)
    narrow = structured.narrow_module(model, mask, groups)
    close(narrow(tokens), small_fn(small, tokens))
    assert (narrow.embed.features, narrow.embed.num_embeddings) == (3, 9)


def test_the_narrow_module_trains_as_its_layers_do():
    model = Net(nnx.Rngs(0))
    fn, state = prepared(model)
    narrow = structured.narrow_module(model, *masked_half(fn, state, X))
    differentiate = nnx.grad(lambda model: (model(X) ** 2).sum())
    gradient = nnx.eval_shape(differentiate, narrow)
    shapes = jax.tree.map(jnp.shape, nnx.state(narrow, nnx.Param))
    assert jax.tree.map(jnp.shape, gradient) == shapes


def test_modules_and_states_that_do_not_fit_are_refused():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.kernel = nnx.Param(jnp.ones((3, 8)))
            self.head = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(x @ self.kernel[...])

    fn, state = prepared(Own(nnx.Rngs(0)))
    mask, groups = masked_half(fn, state, X)
    with pytest.raises(TypeError, match=r"\(root\) is a Own"):
        structured.narrow_module(Own(nnx.Rngs(0)), mask, groups)
    with pytest.raises(ValueError, match="mask has a leaf head/bias"):
        structured.narrow_module(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), mask, groups)


def test_statistics_that_the_groups_were_found_without_are_named():
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
    model = nnx.Sequential(*layers, nnx.Linear(8, 2, rngs=rngs))
    model.eval()
    graphdef, weights, rest = nnx.split(model, nnx.Param, ...)

    def fn(weights, x):
        return nnx.merge(graphdef, weights, rest, copy=True)(x)

    mask, groups = masked_half(fn, weights, X)
    with pytest.raises(ValueError, match=r"layers/1: its mean has 8 channels, .* 4"):
        structured.narrow_module(model, mask, groups)


def test_group_norm_refuses_parts_of_groups():
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(3, 8, rngs=rngs), nnx.GroupNorm(8, 2, rngs=rngs)
    model = nnx.Sequential(*layers, nnx.Linear(8, 2, rngs=rngs))
    fn, state = prepared(model)
    groups = structured.channel_groups(fn, state, X)
    assert [group.size for group in groups] == [2]
    halves = [  # Two channels of each group, as other code could couple them.
        group._replace(
            size=4,
            members=tuple(
                m._replace(index=m.index.reshape(2, 4).T) for m in group.members
            ),
        )
        for group in groups
    ]
    mask = structured.structured_mask(random_scores(halves), halves, state, 0.5)
    with pytest.raises(TypeError, match="keeps 4 channels, but not whole groups of 4"):
        structured.narrow_module(model, mask, halves)


def test_random_keys_in_the_state_stay():
    rngs = nnx.Rngs(3)
    layers = nnx.Linear(3, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    model = nnx.Sequential(*layers, nnx.Linear(8, 2, rngs=rngs))
    model.eval()
    graphdef, state = nnx.split(model)

    def fn(state, x):
        return nnx.merge(graphdef, state, copy=True)(x)

    mask, groups = masked_half(fn, state, X)
    narrow = structured.narrow_module(model, mask, groups)
    assert narrow.layers[1].rngs.key[...] == model.layers[1].rngs.key[...]
    small_fn, small = structured.shrink(fn, state, mask, groups)
    close(narrow(X), small_fn(small, X))


def test_a_convolutions_own_mask_is_narrowed_with_it():
    own, rngs = normal(1, 1, 3, 8) > 0, nnx.Rngs(0)
    conv = nnx.Conv(3, 8, (1, 1), mask=own.astype(float), rngs=rngs)
    model = nnx.Sequential(conv, nnx.Conv(8, 2, (1, 1), rngs=rngs))
    fn, state = prepared(model)
    mask, groups = masked_half(fn, state, X)
    small_fn, small = structured.shrink(fn, state, mask, groups)
    narrow = structured.narrow_module(model, mask, groups)
    assert narrow.layers[0].mask.shape == (1, 1, 3, 4)
    close(narrow(X), small_fn(small, X))
