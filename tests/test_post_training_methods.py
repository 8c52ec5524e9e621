"""Every post-training method: the promises that all keep, and NumPy in float64."""

import contextlib
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.post_training import _layers, _owl
from tests import references

# A method is one line here and inherits every test below.
METHODS = {
    "magnitude": jp.by_score(jp.magnitude),
    "wanda": jp.by_score(jp.wanda),
    "ria": jp.by_score(jp.ria),
    "sparse_gpt": jp.sparse_gpt,
    "admm": jp.admm,
    "dsnot": jp.dsnot(jp.by_score(jp.wanda)),
}
REFERENCES = {name: getattr(references, name) for name in METHODS}
AMOUNTS = {"sparsity": {"sparsity": 0.5}, "2:4": {"n_m": (2, 4)}}
each_method = pytest.mark.parametrize("name", METHODS)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(tokens=96, width=16):
    """Correlated, with a mean; one input is always 0."""
    x = draw(0, tokens, width) @ draw(1, width, width) + draw(2, width)[None]
    x[:, 5] = 0
    return x


@pytest.mark.parametrize("amount", AMOUNTS)
@each_method
def test_equals_numpy_in_float64(name, amount):
    """On one matrix with zeros, over two batches."""
    x, w = inputs(), draw(3, 16, 12)
    w[:3, :4] = 0  # One input of four may stay there.
    w[8, 2:9] = 0
    batches = [jnp.asarray(x[:40]), jnp.asarray(x[40:])]
    new, mask = METHODS[name](
        lambda p, x: x @ p["w"], {"w": jnp.asarray(w)}, batches, **AMOUNTS[amount]
    )
    expected, kept = REFERENCES[name](
        w.T.astype(float), x.astype(float), **AMOUNTS[amount]
    )
    np.testing.assert_array_equal(mask["w"], kept.T)
    np.testing.assert_allclose(new["w"], expected.T, rtol=2e-2, atol=2e-3)


def model(p, x):
    """Every way in which a layer is stored; nothing else multiplies x."""
    y = jnp.einsum("td,dhk->thk", x, p["heads"]) + p["bias"][None]
    y = jnp.einsum("thk,hkd->td", jnp.tanh(y), p["out"]) * p["scale"][None]
    chosen = jax.nn.one_hot(jnp.argmax(x[:, :2], axis=1), 3)  # Never the last expert.
    own = jnp.einsum("te,td->etd", chosen, y).astype(y.dtype)
    return jnp.einsum("etd,edf->etf", own, p["experts"]).sum(0)


SHAPES = {"heads": (8, 2, 4), "out": (2, 4, 8), "experts": (3, 8, 8)}
SHAPES |= {"bias": (2, 4), "scale": (8,)}


@each_method
def test_the_promises_that_all_methods_keep(name):
    """In bfloat16: counts, prior, zeros, unreached experts, untouched leaves."""
    method, x = METHODS[name], jnp.asarray(draw(9, 64, 8), jnp.bfloat16)
    params = {
        n: jnp.asarray(draw(i, *s), jnp.bfloat16)
        for i, (n, s) in enumerate(SHAPES.items())
    }
    pruned = {n: np.zeros(s, bool) for n, s in SHAPES.items()}
    pruned["heads"][:2], pruned["bias"][0, 0] = True, True  # A quarter; a bias.
    prior = {n: jnp.asarray(~m) for n, m in pruned.items()}
    reached = contextlib.nullcontext()
    if name != "magnitude":  # Which does not look at the inputs.
        reached = pytest.warns(UserWarning, match=r"'experts\[2\]'.*by magnitude")
    with reached:
        new, mask = method(model, params, [x[:32], x[32:]], sparsity=0.5, prior=prior)
    assert jax.tree.map(lambda p: p.dtype, new) == jax.tree.map(
        lambda p: p.dtype, params
    )
    for leaf, shape in SHAPES.items():
        kept = np.asarray(mask[leaf])
        assert not (kept & pruned[leaf]).any()
        np.testing.assert_array_equal(kept, np.asarray(new[leaf] != 0))
        if len(shape) == 3:
            assert kept.sum() == kept.size // 2
    for leaf in ("bias", "scale"):
        np.testing.assert_array_equal(new[leaf], params[leaf] * prior[leaf])
    # One output of an expert that no token reached: its largest weights, unchanged.
    last, old = (
        np.asarray(mask["experts"][2]),
        np.abs(np.asarray(params["experts"][2], float)),
    )
    if name in ("sparse_gpt", "admm"):  # The largest of the layer.
        assert old[last].min() >= old[~last].max()
    else:
        assert (
            np.where(last, old, np.inf).min(0) >= np.where(last, 0, old).max(0)
        ).all()
    np.testing.assert_array_equal(new["experts"][2], params["experts"][2] * last)
    # Again, by 2:4: nothing comes back, and no group has more than two.
    with warnings.catch_warnings(action="ignore"):
        _, again = method(model, new, [x], n_m=(2, 4))
    for leaf in ("heads", "out", "experts"):
        assert not np.asarray(again[leaf] & ~mask[leaf]).any()
        groups = {"heads": (2, 4, 8), "out": (2, 4, 8), "experts": (6, 4, 8)}[leaf]
        assert (np.asarray(again[leaf]).reshape(groups).sum(1) <= 2).all()


def test_admm_with_uncorrelated_inputs_keeps_magnitudes_choice_and_values():
    w = draw(4, 24, 16)
    x = np.concatenate([np.eye(24), -np.eye(24)]).astype(np.float32)
    new, mask = jp.admm(lambda w, x: x @ w, jnp.asarray(w), [x], sparsity=0.75)
    sizes = np.abs(w)
    expected = sizes >= np.sort(sizes, axis=None)[-(w.size // 4)]
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_allclose(new, w * expected, rtol=1e-6)


def test_admm_reconstructs_better_than_sparse_gpt_and_it_than_wanda():
    x = jnp.asarray(draw(5, 300, 32) @ (np.eye(32) + draw(6, 32, 32) / 4), jnp.float32)
    w = jnp.asarray(draw(7, 32, 24))

    def error(method):
        new, _ = method(lambda w, x: x @ w, w, [x], sparsity=0.5)
        return float(jnp.linalg.norm(x @ (new - w)))

    errors = [error(METHODS[name]) for name in ("admm", "sparse_gpt", "wanda")]
    assert errors[0] < 0.9 * errors[1] < 0.85 * errors[2]


@pytest.mark.parametrize("name", ["sparse_gpt", "admm"])
def test_the_scale_of_the_inputs_does_not_matter(name):
    x, w = inputs(), jnp.asarray(draw(3, 16, 12))
    errors = []
    for scale in (1.0, 1e-3, 1e-5):
        new, _ = METHODS[name](lambda w, x: x @ w, w, [scale * x], sparsity=0.5)
        errors.append(np.linalg.norm(x @ (new - w)))
    np.testing.assert_allclose(errors, errors[0], rtol=1e-3)


def test_groups_are_of_all_inputs_of_an_output():
    """Of 4 heads of 6 channels: 24 inputs, of which 2 of every 4 are kept."""
    params = {"q": draw(0, 8, 4, 6), "out": draw(1, 4, 6, 8)}

    def fn(p, x):
        y = jnp.einsum("td,dhk->thk", x, p["q"])
        return jnp.einsum("thk,hkd->td", y, p["out"])

    x = draw(2, 16, 8)
    _, mask = METHODS["wanda"](fn, params, [x], n_m=(2, 4))
    axes = jp.input_axes(fn, params, x)
    expected = jp.n_m_mask(jp.wanda(fn)(params, x), 2, 4, axis=axes)
    jax.tree.map(np.testing.assert_array_equal, mask, expected)
    with pytest.raises(ValueError, match=r"w of shape \(8, 1\) has 1 inputs, not a"):
        METHODS["wanda"](
            lambda w, x: x @ w["w"].T, {"w": draw(3, 8, 1)}, [x[:, :1]], n_m=(2, 4)
        )


def test_methods_made_anew_share_programs():
    def new():
        return jp.by_score(jp.ria), jp.dsnot(jp.by_score(jp.ria), cycles=3)

    def compiled(method):
        method(lambda p, x: x @ p["w"], LINEAR, [X], sparsity=0.5)
        return _layers._pruned._cache_size(), _layers._prepare._cache_size()

    before = [compiled(method) for method in new()]
    assert [compiled(method) for method in new()] == before[1:] * 2


@pytest.mark.parametrize("name", ["magnitude", "wanda", "dsnot"])
def test_float64_weights_that_are_kept_are_not_rounded(name):
    with jax.enable_x64(True):
        w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)))
        w = w.at[0, 0].set(1e-60)  # 0 in float32.
        for sparsity in (0.0, 0.5):
            new, mask = METHODS[name](
                lambda w, x: x @ w, w, [draw(1, 16, 8)], sparsity=sparsity
            )
            assert new.dtype == jnp.float64 and float(mask.mean()) == 1 - sparsity
            np.testing.assert_array_equal(new, w * mask)


def test_dsnot_lowers_the_error_of_the_mean_and_keeps_the_weights():
    x, w = inputs(), jnp.asarray(draw(3, 16, 12))
    found = {
        n: METHODS[n](lambda w, x: x @ w, w, [x], sparsity=0.5)
        for n in ("wanda", "dsnot")
    }
    lost = {n: np.abs(x.mean(0) @ np.asarray(w - new)) for n, (new, _) in found.items()}
    assert (lost["dsnot"] <= lost["wanda"] + 1e-5).all()
    assert lost["dsnot"].sum() < 0.75 * lost["wanda"].sum()
    new, mask = found["dsnot"]
    np.testing.assert_array_equal(new, w * mask)
    np.testing.assert_array_equal(mask.sum(0), found["wanda"][1].sum(0))


def test_sparsities_may_differ_by_leaf():
    params = {"a": draw(0, 8, 6), "b": {"c": draw(1, 6, 8), "d": draw(2, 8, 8)}}
    _, mask = jp.sparse_gpt(
        lambda p, x: x @ p["a"] @ p["b"]["c"] @ p["b"]["d"],
        jax.tree.map(jnp.asarray, params),
        [draw(3, 32, 8)],
        sparsity={"a": 0.25, "b": 0.75},
    )
    assert [float(m.mean()) for m in jax.tree.leaves(mask)] == [0.75, 0.25, 0.25]


def test_layers_with_the_same_inputs_share_one_statistic():
    def fn(p, x):
        y = jnp.tanh(x)
        return jnp.einsum("td,dhk->thk", y, p["q"]).reshape(6, -1) + y @ p["k"] @ p["o"]

    params = {"q": draw(0, 4, 2, 3), "k": draw(1, 4, 5), "o": draw(2, 5, 6)}
    layers, totals = _layers.layer_statistics(
        fn, params, [draw(3, 6, 4)], lambda x, batch, inputs: jnp.sum(x, 0), None
    )
    assert layers.leaves == (2, 0, 1) and layers.slots == (0, 0, 1)
    assert [total.shape for total in totals] == [(4,), (5,)]


def test_owl_is_the_papers_formula():
    np.testing.assert_allclose(
        _owl._shared_out([2.0, 4.0, 6.0], 0.7, 0.08), [0.78, 0.7, 0.62], rtol=1e-6
    )
    assert _owl._shared_out([1.0, 1.0], 0.7, 0.08) == [0.7, 0.7]
    assert _owl._shared_out([1.0, 2.0], 0.05, 0.1) == pytest.approx([0.15, 0.01])


def test_owl_counts_outliers_of_all_layers_of_a_block():
    blocks = [{"a": draw(i, 8, 6) ** 3, "b": draw(9 + i, 6, 8)} for i in range(3)]
    x = [draw(20, 10, 8), draw(21, 10, 8)]
    shares, h = [], np.concatenate(x)
    for b in blocks:
        y = np.tanh(h @ b["a"])
        scores = [np.abs(b["a"]) * np.linalg.norm(h, axis=0)[:, None]]
        scores += [np.abs(b["b"]) * np.linalg.norm(y, axis=0)[:, None]]
        flat = np.concatenate([s.ravel() for s in scores])
        shares.append((flat > 3 * flat.mean()).mean())
        h = y @ b["b"]
    found = jp.owl(
        lambda b, x: jnp.tanh(x @ b["a"]) @ b["b"], blocks, x, 0.6, threshold=3
    )
    assert len(set(shares)) > 1
    np.testing.assert_allclose(found, _owl._shared_out(shares, 0.6, 0.08), rtol=1e-5)


LINEAR = {"w": draw(0, 4, 6)}
apply = functools.partial(jp.by_score(jp.wanda), lambda p, x: x @ p["w"], LINEAR)
X = draw(1, 5, 4)
ERRORS = {
    "amount": (lambda: apply([X]), r"Pass one of sparsity=0.5 and n_m"),
    "tree": (lambda: apply([X], sparsity={"v": 0.5}), r"structure of params, or a pre"),
    "prior": (
        lambda: apply([X], sparsity=0.5, prior={"w": jnp.ones((4, 5), bool)}),
        r"prior must have the shapes of params",
    ),
    "groups": (
        lambda: apply([X], n_m=(2, 3)),
        r"leaf w of shape \(4, 6\) has 4 inputs",
    ),
    "NaN": (
        lambda: jp.by_score(jp.wanda)(
            lambda p, x: x @ p["w"], {"w": LINEAR["w"] * np.nan}, [X], sparsity=0.5
        ),
        r"params contain NaN in w",
    ),
    "cycles": (lambda: jp.dsnot(jp.admm, cycles=0), r"cycles must be .* at least 1"),
    "threshold": (lambda: jp.dsnot(jp.admm, threshold=-1), r"threshold must be at lea"),
    "limit": (lambda: jp.owl(jnp.dot, [X], [X], 0.5, limit=-1), r"limit must be at le"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_what_is_wrong(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
