"""Sparse orthogonal initialisation: what must hold of the weights, by algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import QUICK, kept

KEY = jax.random.key(0, impl="rbg")  # Compiles faster.
SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (16, 16), "bias": (16,)}
PARAMS = {name: jnp.full(shape, 7, jnp.float32) for name, shape in SHAPES.items()}
MATRICES = ("tall", "wide", "square")


@pytest.fixture(scope="module")
def drawn():
    return {s: jp.exact_orthogonal_init(KEY, PARAMS, s) for s in (0.0, 0.5, 0.9)}


def gram(w):
    """The smaller of its two products with itself."""
    w = np.asarray(w, np.float64)
    return w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_orthogonal_and_as_sparse_as_asked(sparsity, drawn):
    params, mask = drawn[sparsity]
    for name in MATRICES:
        w, m, size = np.asarray(params[name]), mask[name], PARAMS[name].size
        np.testing.assert_allclose(gram(w), np.eye(min(w.shape)), atol=1e-6)
        assert kept(m) == size - round(sparsity * size)
        assert not (w[~np.asarray(m)] != 0).any()
        # The next rotation would have been too much: it fills two rows at most.
        assert kept(m) - np.count_nonzero(w) < min(w.shape)
    np.testing.assert_array_equal(params["bias"], 7.0)
    assert mask["bias"].all()


def test_not_the_identity_and_not_the_same_for_another_key(drawn):
    params, _ = drawn[0.5]
    other, _ = jp.exact_orthogonal_init(jax.random.key(1, impl="rbg"), PARAMS, 0.5)
    for name in MATRICES:
        assert not np.array_equal(params[name], other[name])
    # Rotations mix: no entry dominates where half of the matrix is filled.
    assert np.abs(params["square"]).max() < 0.95
    # A tall matrix's first rows are no more likely to be filled than its last.
    firsts = [
        jp.exact_orthogonal_init(
            jax.random.key(k, impl="rbg"), {"w": jnp.zeros((24, 10))}, 0.95
        )
        for k in range(30)
    ]
    rows = np.mean([np.any(np.asarray(p["w"]), axis=1) for p, _ in firsts], axis=0)
    np.testing.assert_allclose(rows[:12].mean(), rows[12:].mean(), atol=0.15)


@pytest.mark.parametrize(("taps", "sparsity"), [((3, 3), 0.5), ((2, 4), 0.95)])
def test_convolutions_preserve_norms(taps, sparsity):
    shape = (*taps, 6, 8)
    params, mask = jp.exact_orthogonal_init(KEY, {"w": jnp.zeros(shape)}, sparsity)
    w = params["w"]
    x = jax.random.normal(jax.random.key(2), (2, 5, 5, 6))
    before = [(size - 1) // 2 for size in taps]
    pads = [(b, size - 1 - b) for b, size in zip(before, taps, strict=True)]
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], mode="wrap")
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=(1, 2))
    y = np.einsum("bhwikl,klio->bhwo", windows, w)
    np.testing.assert_allclose(
        np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )
    size, density = w.size, 1 - sparsity
    assert kept(mask) == size - round(sparsity * size)
    assert not (np.asarray(w)[~np.asarray(mask["w"])] != 0).any()
    # The central tap takes sqrt(d) of itself, or all that is kept; others are free.
    central = min(size - round(sparsity * size), int(density**0.5 * 48))
    assert 0 <= central - np.count_nonzero(w) < 2 * 6
    assert np.count_nonzero(w) == np.count_nonzero(w[before[0], before[1]])
    if sparsity == 0.5:
        assert kept(mask["w"][0, 0]) > 0


def test_gain_and_half_precision():
    params = {"w": jnp.zeros((12, 12), jnp.bfloat16)}
    new, _ = jp.exact_orthogonal_init(KEY, params, 0.5, gain=2**0.5)
    assert new["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(gram(new["w"]), 2 * np.eye(12), atol=2e-2)


def test_the_counts_of_a_mask_at_hand():
    mask = jp.global_mask(jp.random(KEY)(PARAMS), 0.6)
    sparsities = jax.tree.map(lambda m: 1 - m.mean(dtype=float).item(), mask)
    params, own = jp.exact_orthogonal_init(KEY, PARAMS, sparsities)
    assert jax.tree.map(kept, own) == jax.tree.map(kept, mask)
    for name in MATRICES:
        expected = np.eye(min(SHAPES[name]))
        np.testing.assert_allclose(gram(params[name]), expected, atol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_lies_where_the_parameters_lay(axis_type, drawn):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    specs = {"tall": P("x", "y"), "wide": P(None, "y"), "square": P("x"), "bias": P()}
    layout = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    init = lambda key, params: jp.exact_orthogonal_init(key, params, 0.5)  # noqa: E731
    if axis_type == AxisType.Explicit:  # Types say where, so also under jit.
        init = jax.jit(init, compiler_options=QUICK)
    for tree, expected in zip(
        init(KEY, jax.device_put(PARAMS, layout)), drawn[0.5], strict=True
    ):
        for name, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(layout[name], leaf.ndim)
            np.testing.assert_allclose(leaf, expected[name], atol=1e-6)
