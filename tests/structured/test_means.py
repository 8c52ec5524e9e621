"""Means over narrowed axes: of the masked model, or of one written at the new width."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune import structured
from tests.structured.harness import arrays, close, measured, normal, random_scores

X = normal(3, 5, 4)


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return x * p["scale"] + p["bias"]


def fast_layer_norm(x, p):
    mean, square = x.mean(-1, keepdims=True), (x**2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(square - mean**2 + 1e-3) * p["scale"]


def rms_norm(x, p):
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) / x.shape[-1] + 1e-3)


def rms_norm_in_half(x, p):
    square = (x.astype(jnp.bfloat16) ** 2).mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(square.astype(jnp.float32) + 1e-3) * p["scale"]


def unbiased(x, p):
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 0.1)


def over_time_and_channels(x, p):
    return (x - x.mean((1, 2), keepdims=True)) / (x.std((1, 2), keepdims=True) + 0.1)


@jax.custom_vjp
def own_rms(x):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-3)


def own_rms_backward(x, g):
    inverse = jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-3)
    return (g * inverse - x * inverse**3 * (g * x).mean(-1, keepdims=True),)


own_rms.defvjp(lambda x: (own_rms(x), x), own_rms_backward)


def rms_norm_with_a_rule(x, p):
    return own_rms(x) * p["scale"]


def in_a_scan(x, p):
    def layer(x, _):
        return layer_norm(x, p), None

    return jax.lax.scan(layer, x, length=2)[0]


NORMS = (
    layer_norm, fast_layer_norm, rms_norm, rms_norm_in_half, unbiased,
    over_time_and_channels, rms_norm_with_a_rule, in_a_scan,
)  # fmt: skip


def model(norm):
    def fn(params, x):
        return jnp.tanh(norm(x @ params["w"], params)) @ params["v"]

    return fn


def shrunk(fn, params, x=X, keep=3, **options):
    groups = structured.channel_groups(fn, params, x)
    (size,) = [group.size for group in groups]
    scores = random_scores(groups)
    mask = structured.structured_mask(scores, groups, params, 1 - keep / size)
    return mask, *structured.shrink(fn, params, mask, groups, **options)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
def test_new_width_is_the_model_written_narrow_and_old_the_masked_one(norm):
    # The code reads its widths off its parameters, so it is its own narrow version.
    fn, params = model(norm), arrays(w=(4, 8), scale=(8,), bias=(8,), v=(8, 2))
    tolerance = 2e-2 if norm is rms_norm_in_half else 1e-5
    mask, new_fn, small = shrunk(fn, params, mean_width="new")
    chex.assert_shape(small["w"], (4, 3))
    wanted, gradient = measured(fn, small, X)
    found, found_gradient = measured(new_fn, small, X)
    close(found, wanted, tolerance)
    close(found_gradient, gradient, 3 * tolerance)

    _, old_fn, _ = shrunk(fn, params)
    old = old_fn(small, X)
    close(old, fn(jp.apply_mask(params, mask), X), tolerance)
    assert np.abs(old - wanted).max() > 1e-2  # The two meanings do differ.


def test_flax_layers_at_the_new_width():
    def make(width, norm):
        rngs = nnx.Rngs(0)
        layers = nnx.Linear(4, width, rngs=rngs), norm(width, rngs=rngs)
        return nnx.Sequential(*layers, nnx.Linear(width, 2, rngs=rngs))

    for norm in (nnx.LayerNorm, nnx.RMSNorm):
        graphdef, state = nnx.split(make(8, norm))
        narrow, _ = nnx.split(make(3, norm))

        def fn(state, x, graphdef=graphdef):
            return nnx.merge(graphdef, state, copy=True)(x)

        _, small_fn, small = shrunk(fn, state, mean_width="new")
        close(small_fn(small, X), nnx.merge(narrow, small)(X))


def test_group_norm_loses_whole_groups_so_both_widths_agree():
    def group_norm(x, count):
        parts = x.reshape(*x.shape[:-1], count, 4)
        mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
        return ((parts - mean) / jnp.sqrt(var + 1e-3)).reshape(x.shape)

    def fn(params, x):
        x = x @ params["w"]
        return group_norm(x, x.shape[-1] // 4) @ params["v"]

    params = arrays(w=(4, 12), v=(12, 2))
    _, new_fn, small = shrunk(fn, params, keep=1, mean_width="new")
    _, old_fn, _ = shrunk(fn, params, keep=1)
    chex.assert_shape(small["w"], (4, 4))
    close(new_fn(small, X), fn(small, X))
    close(old_fn(small, X), fn(small, X))


def test_a_sum_that_is_more_than_a_mean_stays_that_of_the_masked_model():
    def fn(params, x):
        hidden = x @ params["w"]
        total = (hidden**2).sum(-1, keepdims=True)
        return (hidden / (1 + total / 8) + total) @ params["v"]

    params = arrays(w=(4, 8), v=(8, 2))
    mask, new_fn, small = shrunk(fn, params, mean_width="new")
    close(new_fn(small, X), fn(jp.apply_mask(params, mask), X))


def test_other_quotients_of_sums_stay():
    def fn(params, x):
        hidden = x @ params["w"]
        return (hidden / (1 + (hidden**2).sum(-1, keepdims=True) / 5)) @ params["v"]

    params = arrays(w=(4, 8), v=(8, 2))
    mask, new_fn, small = shrunk(fn, params, mean_width="new")
    close(new_fn(small, X), fn(jp.apply_mask(params, mask), X))


def test_a_file_keeps_which_width_is_meant(tmp_path):
    fn, params = model(layer_norm), arrays(w=(4, 8), scale=(8,), bias=(8,), v=(8, 2))
    mask, _, small = shrunk(fn, params)
    groups = structured.channel_groups(fn, params, X)
    for width in ("old", "new"):
        small_fn, _ = structured.shrink(fn, params, mask, groups, mean_width=width)
        structured.save(tmp_path / width, small, mask, groups, mean_width=width)
        again_fn, again = structured.load(tmp_path / width, fn, params)
        close(again_fn(again, X), small_fn(small, X))


def test_another_width_is_refused():
    params = arrays(w=(4, 8), v=(8, 2))
    with pytest.raises(ValueError, match='"old" or "new"; got \'narrow\''):
        shrunk(lambda p, x: x @ p["w"] @ p["v"], params, mean_width="narrow")
