"""What removed channels hold: 0, another number, or what constants say."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune import structured
from tests.structured.harness import arrays, check, functional, normal, randomized


def rms(h):
    return h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-3)


def layer_norm(h):
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-3)


# They mix channels, or need something else than an array of floats.
MIXING = {"softmax", "log_softmax", "sort", "unwrap", "from_dlpack"}
# Loops and series whose value at 0 is not followed.
OPAQUE = {"i0", "exp1", "expi", "erfcx", "spence"}


def unary(module):
    """The functions of a module that map an array of floats to one of its shape."""
    for name in sorted(set(dir(module)) - MIXING):
        function = getattr(module, name)
        if name.startswith("_") or not callable(function) or inspect.isclass(function):
            continue
        try:
            out = jax.eval_shape(function, jax.ShapeDtypeStruct((3, 8), "float32"))
        except Exception:  # It takes other arguments.
            continue
        if getattr(out, "shape", None) == (3, 8) and out.dtype == jnp.float32:
            yield name, function


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", [jax.nn, jnp, jax.lax, jax.scipy.special])
def test_a_norm_behind_any_elementwise_function_is_followed(module):
    params, x = arrays(w=(4, 8), v=(8, 2)), normal(3, 4)
    found = dict(unary(module))
    assert len(found) > 20
    frozen = {
        name
        for name, function in found.items()
        if not structured.channel_groups(
            lambda p, x, f=function: rms(f(x @ p["w"])) @ p["v"], params, x
        )
    }
    assert frozen <= OPAQUE
    for name in frozen:
        assert (found[name](jnp.zeros(8)) != 0).any()  # It would have been a 0.


KINKED = {
    "relu6": jax.nn.relu6,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_silu": jax.nn.hard_silu,
    "celu": jax.nn.celu,
    "mish": jax.nn.mish,
    "shifted softplus": lambda h: jax.nn.softplus(h) - jnp.log(2.0),
    "softplus": jax.nn.softplus,
    "soft threshold": lambda h: jnp.sign(h) * jnp.maximum(jnp.abs(h) - 0.1, 0),
    "min": lambda h: jnp.minimum(h, 0.5),
    "max": lambda h: jnp.maximum(h, -0.5),
    "max of a positive": lambda h: jnp.maximum(h, 0.25),
    "clip": lambda h: jnp.clip(h, -1, 1),
    "clamp": lambda h: jax.lax.clamp(np.float32(-0.5), h, np.float32(0.5)),
    "where of itself": lambda h: jnp.where(h > 1, 1, jnp.where(h < -1, -1, h)),
    "leaky where": lambda h: jnp.where(h >= 0, h, 0.1 * h),
    "threshold": lambda h: jnp.where(h > 0.3, h, 0.3),
    "nan_to_num": jnp.nan_to_num,
    "power": lambda h: h**3,
    "float power": lambda h: jnp.abs(h) ** 1.5,
    "tanh shrink": lambda h: h - jnp.tanh(h),
}


def test_kinked_functions_are_exact():
    def fn(p, x):
        hidden = x @ p["w"]
        return sum(layer_norm(f(hidden)) for f in KINKED.values()) @ p["v"]

    check(fn, arrays(w=(4, 8), v=(8, 2)), normal(3, 4))


FILLED = {
    "int": lambda h, m: jnp.where(m, h, 0),
    "float": lambda h, m: jnp.where(m, h, 0.0),
    "NumPy scalar": lambda h, m: jnp.where(m, h, np.float32(0)),
    "NumPy array": lambda h, m: jnp.where(m, h, np.zeros(h.shape, np.float32)),
    "zeros_like": lambda h, m: jnp.where(m, h, jnp.zeros_like(h)),
    "first": lambda h, m: jnp.where(~m, 0, h),
    "select": lambda h, m: jax.lax.select(
        jnp.broadcast_to(m, h.shape), h / 0.9, jnp.zeros_like(h)
    ),
    "number": lambda h, m: jnp.where(m, h, 7.0),
    "pad": lambda h, m: jnp.pad(h, ((1, 2), (0, 0))) * jnp.pad(m, ((1, 2), (0, 0))),
    "pad with a number": lambda h, m: jnp.pad(h, ((1, 2), (0, 0)), constant_values=3),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("jit", [False, True])
def test_positions_filled_with_numbers(dtype, jit):
    params = jax.tree.map(lambda w: w.astype(dtype), arrays(w=(4, 8), v=(8, 2)))
    x, m = normal(3, 4).astype(dtype), jnp.array([[True], [False], [True]])
    for name, fill in FILLED.items():

        def fn(p, x, m, fill=fill):
            return layer_norm(fill(x @ p["w"], m)) @ p["v"]

        fn = jax.jit(fn) if jit else fn
        groups = structured.channel_groups(fn, params, x, m)
        assert [g.size for g in groups] == [8], (name, str(groups))


def test_positions_filled_with_numbers_are_exact():
    def fn(p, x, m):
        found = [layer_norm(fill(x @ p["w"], m)) for fill in FILLED.values()]
        return jnp.concatenate(found) @ p["v"]

    params = arrays(w=(4, 8), v=(8, 2))
    check(fn, params, normal(3, 4), jnp.array([[True], [False], [True]]))


def sinusoids(length, width):
    """Fixed positions, from counters."""
    angles = jnp.arange(length)[:, None] / 50 ** (jnp.arange(width // 2) / width)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


TABLE = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


def block(h, p):
    a, b = p
    h = h + jax.nn.gelu(layer_norm(h) @ a) @ b
    return h - 0.1 * h.mean(1, keepdims=True)  # Mixes positions.


POSITIONS = {
    "closed over": lambda h: h + TABLE,
    "from counters": lambda h: h + sinusoids(5, 8),
    "in a jit": jax.jit(lambda h: h * 2 + sinusoids(5, 8)),
    "sliced": lambda h: h + jax.lax.dynamic_slice(sinusoids(9, 8), (2, 0), (5, 8)),
    "interleaved": lambda h: (
        h + jnp.stack([sinusoids(5, 4), TABLE[:, :4]], -1).reshape(5, 8)
    ),
    "one number": lambda h: h + 0.5,
    "per position": lambda h: h + jnp.arange(5)[:, None],
}


def test_fixed_positions_before_a_norm():
    def fn(p, tokens):
        h = p["e"][tokens]
        outs = [layer_norm(add(h)) for add in POSITIONS.values()]
        h = h + sinusoids(5, 8)
        for one in (block, jax.checkpoint(block), jax.checkpoint(block), block):
            h = one(h, p["blocks"])
        outs.append(layer_norm(h) * p["scale"] + p["shift"])
        outs.append(h / jnp.sqrt(jnp.einsum("btc,btc->bt", h, h)[..., None] + 1))
        return sum(outs) @ p["out"]

    params = arrays(e=(11, 8), out=(8, 3), scale=(8,), shift=(8,), a=(8, 6), b=(6, 8))
    params["blocks"] = params.pop("a"), params.pop("b")
    tokens = jnp.arange(10).reshape(2, 5)
    groups = check(fn, params, tokens, work=False)
    assert sorted(g.size for g in groups) == [6, 8]
    with_new_width(fn, params, tokens, groups)


def with_new_width(fn, params, tokens, groups):
    """Means over what stays ignore the positions that are removed."""
    scores = [np.arange(g.size, dtype=float) for g in groups]
    mask = structured.structured_mask(scores, groups, params, 0.5)
    small_fn, small = structured.shrink(fn, params, mask, groups, mean_width="new")
    assert np.isfinite(small_fn(small, tokens)).all()


LOOKUPS = {
    "brackets": lambda e, t: e[t],
    "take": lambda e, t: jnp.take(e, t, axis=0),
    "take by clip": lambda e, t: jnp.take(e, t, axis=0, mode="clip"),
    "get": lambda e, t: e.at[t].get(mode="fill"),
    "get or 0": lambda e, t: e.at[t].get(mode="fill", fill_value=0),
    "get or NaN": lambda e, t: e.at[t].get(mode="fill", fill_value=jnp.nan),
    "transposed": lambda e, t: jnp.take(e.T, t, axis=1).transpose(1, 2, 0),
    "one-hot": lambda e, t: jax.nn.one_hot(t, 20) @ e,
    "vmap": lambda e, t: jax.vmap(lambda t: jnp.take(e, t, axis=0))(t),
    "along": lambda e, t: jnp.take_along_axis(
        jnp.broadcast_to(e, (2, *e.shape)), t[:, :, None], axis=1
    ),
}


def test_lookups_are_taken_to_be_in_range():
    def fn(p, t):
        return sum(layer_norm(look(p["e"], t)) for look in LOOKUPS.values()) @ p["v"]

    groups = check(fn, arrays(e=(20, 8), v=(8, 5)), jnp.array([[1, 2, 3], [4, 0, 19]]))
    assert [g.size for g in groups] == [8]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint8])
def test_lookups_in_tables_of_other_types(dtype):
    def fn(p, t):
        table = jnp.take(p["e"], t, axis=0).astype(jnp.float32)
        return layer_norm(table) @ p["v"]

    params = {**arrays(v=(8, 5)), "e": jnp.ones((20, 8), dtype)}
    assert structured.channel_groups(fn, params, jnp.array([1, 2]))


def test_a_lookup_out_of_range_gives_what_it_gave():
    def fn(p, t):
        return layer_norm(jnp.take(p["e"], t, axis=0)) @ p["v"]

    params, t = arrays(e=(20, 8), v=(8, 5)), jnp.array([3, 20])
    groups = structured.channel_groups(fn, params, t)
    mask = structured.structured_mask([np.arange(8.0)], groups, params, 0.5)
    small_fn, small = structured.shrink(fn, params, mask, groups)
    found = small_fn(small, t)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


class Language(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(20, 8)
        h = embed(tokens) + nn.Embed(5, 8)(jnp.arange(5))
        h = h + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(h))))
        return embed.attend(nn.RMSNorm()(h))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(20, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, 20, rngs=rngs)

    def __call__(self, tokens):
        return self.out(self.norm(self.embed(tokens)))


def test_embeddings_of_flax():
    tokens = jnp.arange(10).reshape(2, 5)
    model = Language()
    params = randomized(jax.eval_shape(model.init, jax.random.key(0), tokens))
    groups = check(model.apply, params, tokens)
    assert sorted(g.size for g in groups) == [8, 12]
    groups = check(*functional(lambda: Model(nnx.Rngs(0))), tokens)
    assert [g.size for g in groups] == [8]


def test_an_axis_that_meets_itself_is_not_completed_twice():
    def fn(p, x):
        # Positions along both axes of a product of the channels with themselves.
        h = (x @ p["w"]).sum(0) + jnp.arange(8.0)
        pair = h[:, None] + h[None]
        return jnp.sqrt((pair**2).sum(-1)) @ p["v"]

    groups = structured.channel_groups(fn, arrays(w=(4, 8), v=(8, 2)), normal(3, 4))
    assert not groups
    assert "two axes of an array share its channels" in str(groups)


SPLITS = {
    "repeated": lambda h: jnp.repeat(h, 8, -1).reshape(*h.shape, 8).sum(-1),
    "kept whole": lambda h: h.reshape(7, 1, 4).reshape(7, 4),
    "split": lambda h: h.reshape(7, 2, 2).reshape(7, 4),
}


@pytest.mark.parametrize("first", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("shape", [(3, 4), (2, 6), (2, 3, 2)])
def test_a_split_behind_others_is_retried(first, shape):
    def fn(p, x):
        h = first(x @ p["a"]) @ p["b"]
        z = jax.nn.softmax((x @ p["c"]).reshape(7, *shape), axis=1).reshape(7, 12)
        return h + z @ p["d"] + first(x @ p["a"]) @ p["b"]

    params = arrays(a=(6, 4), b=(4, 5), c=(6, 12), d=(12, 5))
    groups = structured.channel_groups(fn, params, normal(7, 6))
    sizes = {g.name: g.size for g in groups}
    assert sizes["a"] in (2, 4) and sizes["c"] == shape[1]
