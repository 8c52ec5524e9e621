"""The inputs of layers, wherever they are used: Wanda against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests import references

LAYERS, D, HEADS, K, F = 2, 8, 2, 4, 12
TOKENS = np.random.default_rng(1).integers(0, 7, (3, 6))
PRUNABLE = jp.by_path("layers|head")
INPUTS = {"query": (1,), "key": (1,), "value": (1,), "out": (1, 2)}
INPUTS |= {"gate": (1,), "up": (1,), "down": (1,)}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    attention = {
        name: draw(i, LAYERS, D, HEADS, K) / 3
        for i, name in enumerate(("query", "key", "value"))
    }
    layers = {
        **attention,
        "out": draw(3, LAYERS, HEADS, K, D) / 3,
        "gate": draw(4, LAYERS, D, F) / 3,
        "up": draw(5, LAYERS, D, F) / 3,
        "down": draw(6, LAYERS, F, D) / 3,
    }
    return jax.tree.map(
        jnp.asarray, {"embed": draw(7, 7, D), "layers": layers, "head": draw(8, D, 5)}
    )


def transformer(params, tokens):
    def norm(x):
        return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    @jax.checkpoint
    def layer(x, w):
        y = norm(x)
        q, k, v = (
            jnp.einsum("btd,dhk->bthk", y, w[n]) for n in ("query", "key", "value")
        )
        p = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        x = x + jnp.einsum(
            "bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", p, v), w["out"]
        )
        y = norm(x)
        return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"], None

    x = jax.lax.scan(layer, params["embed"][tokens], params["layers"])[0]
    return x @ params["head"]


def numpy_inputs(params, tokens):
    """The inputs of every layer, (tokens, inputs), by a forward pass of its own."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    x = params["embed"][tokens].reshape(-1, D)
    found = {}

    def norm(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    for i in range(LAYERS):
        w = {n: p[i] for n, p in params["layers"].items()}
        y = norm(x)
        q, k, v = (
            (y @ w[n].reshape(D, -1)).reshape(*tokens.shape, HEADS, K)
            for n in ("query", "key", "value")
        )
        mixed = np.zeros_like(v)
        for b in range(len(tokens)):
            for h in range(HEADS):
                p = np.exp(q[b, :, h] @ k[b, :, h].T)
                mixed[b, :, h] = p / p.sum(1, keepdims=True) @ v[b, :, h]
        mixed = mixed.reshape(-1, HEADS * K)
        x = x + mixed @ w["out"].reshape(-1, D)
        z = norm(x)
        gate = z @ w["gate"]
        hidden = gate / (1 + np.exp(-gate)) * (z @ w["up"])
        x = x + hidden @ w["down"]
        found |= {(n, i): y for n in ("query", "key", "value")}
        found |= {("out", i): mixed, ("gate", i): z, ("up", i): z, ("down", i): hidden}
    return {**found, ("head", 0): x}


def as_rows(leaf, inputs):
    """A layer's weights as (outputs, inputs): the inputs lead in every leaf here."""
    width = int(np.prod(leaf.shape[: len(inputs)]))
    return np.asarray(leaf).reshape(width, -1).T


@pytest.fixture(scope="module")
def scores(params):
    return jax.jit(jp.wanda(transformer, prunable=PRUNABLE))(params, TOKENS)


def test_wanda_on_a_scanned_transformer(params, scores):
    found = numpy_inputs(params, TOKENS)
    for name, inputs in INPUTS.items():
        for i in range(LAYERS):
            w = params["layers"][name][i]
            expected = np.abs(as_rows(w, inputs)) * np.linalg.norm(
                found[name, i], axis=0
            )
            actual = as_rows(scores["layers"][name][i], inputs)
            np.testing.assert_allclose(actual, expected, rtol=1e-4)
    expected = (
        np.abs(params["head"]) * np.linalg.norm(found["head", 0], axis=0)[:, None]
    )
    np.testing.assert_allclose(scores["head"], expected, rtol=1e-4)
    np.testing.assert_array_equal(scores["embed"], np.abs(params["embed"]))


def test_rows_are_exact(params, scores):
    axes = jp.input_axes(transformer, params, TOKENS, prunable=PRUNABLE)
    assert axes == {f"layers/{n}": a for n, a in INPUTS.items()} | {"head": (0,)}
    assert list(axes) == [*(f"layers/{n}" for n in INPUTS), "head"]
    mask = jp.row_mask(scores, 0.5, axis=axes, prunable=PRUNABLE)
    assert np.asarray(mask["embed"]).all()
    for name, inputs in INPUTS.items():
        for i in range(LAYERS):
            score = as_rows(scores["layers"][name][i], inputs)
            kept = as_rows(mask["layers"][name][i], inputs)
            best = np.argsort(-score, axis=1)[:, : score.shape[1] // 2]
            expected = np.zeros_like(kept)
            np.put_along_axis(expected, best, True, axis=1)
            np.testing.assert_array_equal(kept, expected)


def test_batches_add_up_as_squares(params):
    score = jp.wanda(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
    weights, x = {"a": draw(0, 4, 5), "b": draw(1, 5, 3)}, draw(2, 6, 4)
    both = [score(weights, part) for part in (x[:2], x[2:])]
    total = jax.tree.map(lambda a, b: jnp.sqrt(a**2 + b**2), *both)
    for name, whole in score(weights, x).items():
        np.testing.assert_allclose(whole, total[name], rtol=1e-5)


X, W = draw(20, 6, 4), draw(21, 4, 6)
E = draw(22, 3, 4, 5)
SQUARES = (X**2).sum(0)
WAYS = {  # A function of a leaf and X, the leaf, and the squared norms along it.
    "half precision": (lambda w, x: x @ w.astype(jnp.bfloat16), W, SQUARES[:, None]),
    "transposed": (lambda w, x: w.T @ x.T, W, SQUARES[:, None]),
    "masked": (lambda w, x: x @ (w * (w > 0)), W, SQUARES[:, None]),
    "where": (lambda w, x: x @ jnp.where(w > 0, w, 0), W, SQUARES[:, None]),
    "outputs split": (
        lambda w, x: jnp.einsum("td,dhk->thk", x, w.reshape(4, 2, 3)),
        W,
        SQUARES[:, None],
    ),
    "inputs split": (
        lambda w, x: jnp.einsum("tab,bao->to", x.reshape(6, 2, 2), w.reshape(2, 2, 6)),
        W,
        SQUARES.reshape(2, 2).T.reshape(4, 1),
    ),
    "twice": (lambda w, x: (x @ w, 3 * x @ w), W, 10 * SQUARES[:, None]),
    "looped over": (
        lambda w, x: jax.lax.scan(lambda c, t: (c, t @ w), 0, x)[1],
        W,
        SQUARES[:, None],
    ),
    "one of two branches": (
        lambda w, x: jax.lax.cond(
            x[0, 0] < 9, lambda: x @ w, lambda: jnp.zeros((6, 6))
        ),
        W,
        SQUARES[:, None],
    ),
    "vmapped inputs": (
        lambda w, x: jax.vmap(lambda t: jnp.tanh(t) @ w)(x),
        W,
        (np.tanh(X) ** 2).sum(0)[:, None],
    ),
    "vmapped layers": (
        lambda w, x: jax.vmap(lambda one, i: (x * i) @ one)(w, jnp.arange(3.0)),
        E,
        np.arange(3.0)[:, None, None] ** 2 * SQUARES[:, None],
    ),
    "a scan over one layer": (
        lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0],
        draw(24, 1, 4, 4),
        SQUARES[:, None],
    ),
    "nested scans": (
        lambda w, x: jax.lax.scan(
            lambda c, group: jax.lax.scan(lambda c, one: (c, x @ one), c, group), 0, w
        )[1],
        draw(23, 2, 3, 4, 5),
        SQUARES[:, None],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_wanda_finds_the_inputs(way):
    fn, w, squares = WAYS[way]
    score = jp.wanda(lambda p, x: fn(p["w"], x))({"w": jnp.asarray(w)}, X)["w"]
    tolerance = 1e-2 if way == "half precision" else 1e-5
    np.testing.assert_allclose(score, np.abs(w) * np.sqrt(squares), rtol=tolerance)


def test_wanda_of_a_convolution_sums_over_places():
    images, kernel = draw(0, 2, 5, 5, 3), draw(1, 3, 2, 3, 4)

    def fn(w, x):
        return jax.lax.conv_general_dilated(
            x, w, (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    squares = np.zeros((3, 2, 3))
    for i, j in np.ndindex(3, 2):
        squares[i, j] = (images[:, i : i + 3 : 2, j : j + 4] ** 2).sum((0, 1, 2))
    score = jp.wanda(fn)(jnp.asarray(kernel), images)
    expected = np.abs(kernel) * np.sqrt(squares)[..., None]
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_a_leaf_used_both_ways_may_be_left_out():
    def fn(p, x):
        return jnp.tanh(x @ p["w"] @ p["w"].T) @ p["head"]

    params = {"w": W, "head": draw(3, 4, 2)}
    only = jp.by_path("head")
    assert jp.input_axes(fn, params, X, prunable=only) == {"head": (0,)}
    scores = jp.wanda(fn, prunable=only)(params, X)
    norms = np.linalg.norm(np.tanh(X @ W @ W.T), axis=0)
    np.testing.assert_array_equal(scores["w"], np.abs(W))
    np.testing.assert_allclose(
        scores["head"], np.abs(params["head"]) * norms[:, None], rtol=1e-4
    )


@pytest.mark.parametrize("options", [{"sparsity": 0.6}, {"n_m": (2, 4)}])
def test_sparse_gpt_in_blocks_of_columns_is_numpys(options):
    x = draw(0, 64, 24) @ draw(1, 24, 24) * np.linspace(0.2, 2, 24)[None]
    x[:, 5] = 0  # A dead input.
    w, options = draw(2, 24, 10), {"block": 16, **options}
    new, mask = jp.sparse_gpt(
        lambda w, x: x @ w, jnp.asarray(w), [jnp.asarray(x)], **options
    )
    expected, kept = references.sparse_gpt(w.T, x, **options)
    np.testing.assert_array_equal(mask, kept.T)
    np.testing.assert_allclose(new, expected.T, atol=2e-3)


def test_sparse_gpt_prunes_each_layer_of_a_stack_by_itself():
    """Layers of a vmap, in the middle, and of a scan: one H for each, from one pass."""
    x, w = draw(0, 3, 20, 8), draw(1, 8, 3, 6)

    def mapped(p, x):
        return jax.vmap(jnp.matmul, in_axes=(0, 1))(x, p)

    def scanned(p, x):
        return jax.lax.scan(
            lambda c, xw: (c, xw[0] @ xw[1]), 0, (x, jnp.moveaxis(p, 1, 0))
        )[1]

    for fn in (mapped, scanned):
        new, mask = jp.sparse_gpt(fn, jnp.asarray(w), [x], sparsity=0.5)
        for i in range(3):
            expected, kept = references.sparse_gpt(
                w[:, i].T, x[i].astype(float), sparsity=0.5
            )
            np.testing.assert_array_equal(mask[:, i], kept.T)
            np.testing.assert_allclose(new[:, i], expected.T, atol=1e-3)


SCALES = {  # Ways to meet activations elementwise, and the shape of the leaf.
    "a norm's scale": (lambda s, x: x * s[None], (4,)),
    "on the left": (lambda s, x: s[None] * x, (4,)),
    "divided by": (lambda s, x: x / s[None], (4,)),
    "about 1": (lambda s, x: x * (1 + s[None]), (4,)),
    "an einsum": (lambda s, x: jnp.einsum("td,d->td", x, s), (4,)),
    "broadcast": (lambda s, x: x * jnp.broadcast_to(s, x.shape), (4,)),
    "a bias": (lambda s, x: x + s[None], (4,)),
    "positions": (lambda s, x: x + s, (6, 4)),
    "of heads": (lambda s, x: (x.reshape(-1, 2, 2) * s[None]).reshape(-1, 4), (2, 2)),
    "a scalar": (lambda s, x: x * s, ()),
    "kept in a row": (lambda s, x: x * s, (1, 4)),
    "in half precision": (
        lambda s, x: (x.astype(jnp.bfloat16) * s.astype(jnp.bfloat16)[None]).astype(
            x.dtype
        ),
        (4,),
    ),
}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("way", SCALES)
def test_what_meets_activations_elementwise_is_no_weight(way, stacked):
    scale, shape = SCALES[way]

    def once(p, x):
        return jnp.tanh(scale(p["s"], x) @ p["w"])

    def layers(p, x):
        return jax.lax.scan(lambda x, p: (once(p, x), None), x, p)[0]

    lead = (2,) if stacked else ()
    params = {"s": draw(30, *lead, *shape), "w": draw(31, *lead, 4, 4)}
    fn, everything = layers if stacked else once, jp.by_path("")
    assert list(jp.input_axes(fn, params, X, prunable=everything)) == ["w"]
    with pytest.raises(ValueError, match=r"leaves .*'s of shape .* scale activations"):
        jp.input_axes(fn, params, X, prunable=jp.by_path("s"))
    with pytest.raises(ValueError, match=r"leaves .*'s of shape .* scale activations"):
        jp.sparse_gpt(fn, params, [X], sparsity=0.5, prunable=jp.by_path("s"))


def test_one_token_does_not_make_a_weight_of_a_scale():
    params = {"s": draw(0, 4), "w": draw(1, 4, 3)}
    axes = jp.input_axes(
        lambda p, x: (x * p["s"][None]) @ p["w"], params, X[:1], prunable=jp.by_path("")
    )
    assert axes == {"w": (0,)}


def test_products_of_two_leaves_have_no_inputs():
    params = {"a": draw(0, 4, 2), "b": draw(1, 2, 3), "w": draw(2, 3, 3)}

    def fn(p, x):
        return x @ (p["a"] @ p["b"]) @ p["w"]

    _, mask = jp.by_score(jp.magnitude)(fn, params, [X], sparsity=0.5)
    assert [bool(m.all()) for m in jax.tree.leaves(mask)] == [True, True, False]


def gpt(**options):
    options = {"sparsity": 0.5, "batches": [X], **options}
    return jp.sparse_gpt(lambda p, x: x @ p["w"], {"w": W}, **options)


ERRORS = {
    "no product": (
        lambda: jp.wanda(lambda p, x: x + p["w"].sum())({"w": W}, X),
        r"'w'",
    ),
    "carried": (
        lambda: jp.wanda(
            lambda p, x: jax.lax.fori_loop(0, 2, lambda _, w: w + (x @ w).sum(), p["w"])
        )({"w": W}, X),
        r"No inputs were found.*'w'",
    ),
    "sliced": (
        lambda: jp.wanda(lambda p, x: x[:, :2] @ p["w"][:2])({"w": W}, X),
        r"'w'.* sliced",
    ),
    "both ways": (
        lambda: jp.wanda(lambda p, x: (x @ p["w"]) @ p["w"].T)({"w": W}, X),
        r"leaf w .* different axes",
    ),
    "partly an input": (
        lambda: jp.wanda(lambda p, x: x @ p["w"].reshape(2, 2, 6)[...].reshape(4, 6))(
            {"w": W.reshape(24, 1)}, X
        ),
        r"leaf w of shape \(24, 1\) .* partly an input",
    ),
    "no leaf": (
        lambda: jp.row_mask({"w": W}, 0.5, axis={}),
        r"no entry for a prunable leaf: w\.",
    ),
    "a typo": (
        lambda: jp.row_mask({"w": W}, 0.5, axis={"w": (0,), "v": (0,)}),
        r"the paths are w, and axis is .*'v'",
    ),
    "no axis": (lambda: jp.row_mask({"w": W}, 0.5, axis=2), r"leaf w .* no axis 2"),
    "empty": (lambda: gpt(batches=[]), r"batches is empty"),
    "both": (lambda: gpt(n_m=(2, 4)), r"Pass one of sparsity=0.5 and n_m"),
    "block": (lambda: gpt(sparsity=None, n_m=(2, 4), block=6), r"multiple of m"),
    "groups": (
        lambda: gpt(sparsity=None, n_m=(2, 3), block=6),
        r"leaf w of shape \(4, 6\) has 4 inputs",
    ),
    "damping": (lambda: gpt(damping=0.0), r"above 0"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_what_is_wrong(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
