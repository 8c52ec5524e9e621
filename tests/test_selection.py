"""The selection without a sort, against NumPy's sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.core import _uint64
from jaxprune.masks import _counting, _host, _selection

SHAPES = [(300, 257), (7,), (40, 50), (8, 8), (8, 8), ()]

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn]

# What the scores look like: a new hard case is one line here.
CASES = {
    "normal": lambda x: x,
    "ties": lambda x: np.round(2 * x) / 2,
    "all equal": lambda x: np.ones_like(x),
    "signed zeros": lambda x: np.where(x > 1, x, np.copysign(0.0, x)),
    "infinities": lambda x: np.where(x > 1, np.inf, np.where(x < -1, -np.inf, x)),
    "nan": lambda x: np.where(x > 0.5, np.nan, np.where(x < -1, -np.inf, x)),
    "tiny": lambda x: (x * 1e-12) ** 2,
}


def _host_select(leaves, keep, eligible=None):
    return _host.best_of_all(leaves, keep, eligible, 0)


# The selection that XLA compiles, and the one of values that NumPy can read.
SELECTS = {"compiled": jax.jit(_selection.best_of_all), "host": _host_select}
_select = SELECTS["compiled"]
each_select = pytest.mark.parametrize("select", SELECTS.values(), ids=SELECTS)


def reference(leaves, keep, eligible=None):
    """The same by a stable NumPy sort: ineligible last, NaN before them, then score."""
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])
    nan = np.isnan(flat)
    flat = np.where(nan, 0.0, flat) + 0.0  # -0.0 + 0.0 is 0.0.
    allowed = np.ones(flat.size, bool)
    if eligible is not None:
        allowed = np.concatenate([np.asarray(e).ravel() for e in eligible])
    order = np.lexsort((np.arange(flat.size), -flat, nan, ~allowed))
    mask = np.zeros(flat.size, bool)
    mask[order[:keep]] = True
    cuts = np.cumsum([x.size for x in leaves])[:-1]
    parts = np.split(mask & allowed, cuts)
    return [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]


def scores_of(case, dtype, seed=0):
    rng = np.random.default_rng(seed)
    leaves = [CASES[case](rng.normal(size=shape)) for shape in SHAPES]
    return [jnp.asarray(x, jnp.float32).astype(dtype) for x in leaves]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("restricted", [False, True])
@each_select
def test_equals_the_sort(dtype, restricted, select):
    rng = np.random.default_rng(1)
    eligible = (
        [jnp.asarray(rng.random(s) < 0.7) for s in SHAPES] if restricted else None
    )
    for case in CASES:
        leaves = scores_of(case, dtype)
        size = sum(x.size for x in leaves)
        for keep in (0, 1, 17, size // 10, size // 2, size - 5, size):
            masks = select(leaves, _uint64.wide(keep), eligible)
            expected = reference(leaves, keep, eligible)
            for ours, theirs in zip(masks, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=case)


def test_subnormal_scores_are_told_apart():
    """Keys are integers, so that no processor flushes them to 0."""
    scores = np.arange(1, 2001, dtype=np.float32).reshape(40, 50) * np.float32(1e-42)
    for keep in (1, 500, 1999):
        (mask,) = _select([jnp.asarray(scores)], _uint64.wide(keep))
        np.testing.assert_array_equal(mask, scores > np.sort(scores, None)[-keep - 1])


def test_mixed_dtypes_are_compared_as_numbers():
    leaves = [
        x.astype(d)
        for x, d in zip(
            scores_of("normal", jnp.float32),
            [*DTYPES[:3], *DTYPES[:3]],
            strict=True,
        )
    ]
    masks = _select(leaves, _uint64.wide(1000))
    for ours, theirs in zip(masks, reference(leaves, 1000), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_float64_scores_keep_their_digits_where_x64_is_off():
    with jax.enable_x64(True):
        scores = jnp.asarray([1.0, 1.0 + 1e-12, 1.0 + 2e-12, 1e300])
    assert scores.dtype == np.float64
    (mask,) = _select([scores], _uint64.wide(2))
    np.testing.assert_array_equal(mask, [False, False, True, True])


def test_hundreds_of_leaves():
    rng = np.random.default_rng(0)
    shapes = [(8, 8), (3, 3, 4, 4), (5,)] * 100
    leaves = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
    masks = _select(leaves, _uint64.wide(1234))
    for ours, theirs in zip(masks, reference(leaves, 1234), strict=True):
        np.testing.assert_array_equal(ours, theirs)


LAYOUTS = [
    (512, 512),
    (300, 1000),  # A remainder after the last whole slice.
    (64, 4096),
    (3, 3, 64, 256),
    (2**17,),
    (131_101,),  # A prime: nothing to walk.
    (4, 70_000),
    (2, 40, 40, 40),
]


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_every_layout_counts_every_entry_once(shape):
    """A layout is how a large leaf is walked on the CPU."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for case in (x, np.round(x)):
        leaves = [jnp.asarray(case)]
        (mask,) = _select(leaves, _uint64.wide(x.size // 3))
        np.testing.assert_array_equal(mask, reference(leaves, x.size // 3)[0])


def test_counting_is_exact_beyond_32_bits():
    """A leaf of 2**33 + 2**32 entries that were never allocated.

    Its partial counts are handed over as the walk would leave them.
    """
    partial = jnp.full((3, 2**10), 2**22, jnp.int32)
    total = _uint64.to_int(_uint64.total(partial))
    assert total == 3 * 2**32


def test_flat_indices_are_exact_beyond_32_bits():
    """Rows of a giant leaf's corner, looked at through a block of it."""
    shape = (1, 40, 2**20, 2**10)  # 40 * 2**30 entries
    index = 37 * 2**30 + 12 * 2**10 + 345
    stack = _counting.Stack(jax.ShapeDtypeStruct(shape, jnp.float32), None)
    test = _counting.precedes(stack, _uint64.wide([index]))
    region = _counting.Region(shape, (0, 36, 11, 0), (1, 3, 3, 2**10))
    block = np.arange(36, 39)[:, None, None] * 2**30 + (
        np.arange(11, 14)[:, None] * 2**10 + np.arange(2**10)
    )
    np.testing.assert_array_equal(test(region)[0], block < index)


def test_a_giant_tree_traces():
    """More than 2**31 weights in a leaf and in the tree: shapes only."""
    leaves = [
        jax.ShapeDtypeStruct((80, 8192, 8192), jnp.bfloat16),
        jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32),
    ]
    masks = jax.eval_shape(_selection.best_of_all, leaves, _uint64.wide(3 * 2**31))
    assert [m.shape for m in masks] == [leaf.shape for leaf in leaves]


def test_vmap_over_counts_and_over_scores():
    leaves = scores_of("ties", jnp.float32)
    keeps = [10, 1000, 70_000]
    over_counts = jax.vmap(_selection.best_of_all, in_axes=(None, 0))
    masks = jax.jit(over_counts)(leaves, jax.tree.map(jnp.asarray, _uint64.wide(keeps)))
    for i, keep in enumerate(keeps):
        for ours, theirs in zip(masks, reference(leaves, keep), strict=True):
            np.testing.assert_array_equal(ours[i], theirs)

    lanes = [scores_of("ties", jnp.float32, seed) for seed in range(3)]
    batched = jax.tree.map(lambda *xs: jnp.stack(xs), *lanes)
    masks = jax.jit(jax.vmap(lambda x: _selection.best_of_all(x, _uint64.wide(500))))(
        batched
    )
    for i, lane in enumerate(lanes):
        for ours, theirs in zip(masks, reference(lane, 500), strict=True):
            np.testing.assert_array_equal(ours[i], theirs)


@pytest.mark.parametrize(
    ("size", "shape", "left"),
    [
        (80 * 8192 * 28672, (1, 80, 64, 28672), 64),  # 2**28.1 entries each.
        (2**33, (1, 2**20, 2, 2**7), 128),
        (2**31, (1, 2**16, 2**15), 2**15),
    ],
)
def test_giant_leaves_leave_few_sums_that_all_fit_a_word(size, shape, left):
    axes = _counting._beyond_a_word(size, shape)
    kept_ = [n for i, n in enumerate(shape) if i not in axes]
    assert size // np.prod(kept_) < 2**31 and np.prod(kept_) == left


def test_the_tie_search_on_an_explicit_mesh_indexes_its_own_shard():
    """Less memory than one index an entry of the whole leaf."""
    mesh = jax.make_mesh((8,), ("d",))
    layout = jax.NamedSharding(mesh, jax.P(None, "d"))
    scores = jax.ShapeDtypeStruct((4, 8 * 1024, 1024), jnp.float32, sharding=layout)
    with jax.set_mesh(mesh):
        select = jax.jit(lambda x: _selection.best_of_all([x], _uint64.wide(1000)))
        memory = select.lower(scores).compile().memory_analysis()
    own = 4 * 1024 * 1024
    assert memory.output_size_in_bytes < 2 * own
    assert memory.temp_size_in_bytes < own // 4
