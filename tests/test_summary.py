import dataclasses
import typing
from xml.etree import ElementTree

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.core import _uint64
from jaxprune.masks import _counting

SHAPES = {"conv": (3, 3, 2, 8), "dense": (8, 4), "bias": (4,), "scale": ()}
ULP = 2.0**-22  # Two roundings of a float32.
PARAMS = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
INPUTS = {"conv": (0, 1, 2), "dense": (0,)}


def random_mask(seed, params=PARAMS):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < 0.3), params)


def kept(mask):
    return sum(int(np.sum(np.asarray(m))) for m in jax.tree.leaves(mask))


def size(mask):
    return sum(np.size(m) for m in jax.tree.leaves(mask))


# Trees. Each holds a matrix and a vector.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dataclass:
    w: typing.Any
    b: typing.Any


class Pair(typing.NamedTuple):
    w: typing.Any
    b: typing.Any


def equinox_linear(w, b):
    linear = eqx.nn.Linear(5, 6, key=jax.random.key(0))
    return eqx.tree_at(lambda m: (m.weight, m.bias), linear, (w, b))


TREES = {
    "dict": lambda w, b: {"w": w, "b": b},
    "list": lambda w, b: [w, b],
    "tuple": lambda w, b: (w, (b,)),
    "namedtuple": Pair,
    "dataclass": Dataclass,
    "nnx.State": lambda w, b: nnx.State({"w": nnx.Param(w), "b": nnx.Param(b)}),
    "equinox": equinox_linear,
}
each_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
W, B = jnp.arange(30).reshape(6, 5) < 12, jnp.arange(6) < 3


@each_tree
def test_any_tree(tree):
    params, mask = tree(jnp.zeros((6, 5)), jnp.zeros(6)), tree(W, B)
    summary = jp.summary(params, mask)
    assert summary.prunable == (12, 30, 0.6)
    assert summary.total == (15, 36, 21 / 36)
    assert sorted((row.shape, row.kept) for row in summary.rows) == [
        ((6,), 3),
        ((6, 5), 12),
    ]
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    assert [row.path for row in summary.rows] == [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths
    ]
    assert jp.sparsity(mask) == jnp.float32(21 / 36)
    assert jp.sparsity(mask, params) == jnp.float32(0.6)


def test_a_bare_array_is_a_tree():
    (row,) = jp.summary(jnp.zeros((6, 5)), W).rows
    assert (row.path, row.kept) == ("(root)", 12)


# sparsity


@pytest.mark.parametrize("seed", range(5))
def test_sparsity_is_the_fraction_removed(seed):
    mask = random_mask(seed)
    matrices = {name: mask[name] for name in ("conv", "dense")}
    for got, counted in [
        (jp.sparsity(mask), mask),
        (jp.sparsity(mask, PARAMS), matrices),
        (jp.sparsity(mask, PARAMS, prunable=jp.by_path("bias")), mask["bias"]),
    ]:
        assert got.shape == () and got.dtype == jnp.float32
        np.testing.assert_allclose(got, 1 - kept(counted) / size(counted), rtol=ULP)


@pytest.mark.parametrize("seed", range(3))
def test_sparsity_under_jit_and_vmap(seed):
    mask = random_mask(seed)
    np.testing.assert_allclose(jax.jit(jp.sparsity)(mask), jp.sparsity(mask), rtol=ULP)
    np.testing.assert_allclose(
        jax.jit(jp.sparsity)(mask, PARAMS), jp.sparsity(mask, PARAMS), rtol=ULP
    )
    masks = [random_mask(s) for s in range(4)]
    stacked = jax.tree.map(lambda *m: jnp.stack(m), *masks)
    expected = [jp.sparsity(m, PARAMS) for m in masks]
    got = jax.vmap(lambda m: jp.sparsity(m, PARAMS))(stacked)
    np.testing.assert_allclose(got, expected, rtol=ULP)


@pytest.mark.parametrize("size", [1, 41, 47, 55, 61])  # 41 * (1 / 41) is not 1.
def test_sparsity_of_all_and_of_nothing(size):
    assert jax.jit(jp.sparsity)(jnp.ones(size, bool)) == 0
    assert jax.jit(jp.sparsity)(jnp.zeros(size, bool)) == 1


def test_sparsity_of_a_large_leaf():
    # Large enough for the walk in slices; one weight off from a round number.
    mask = np.zeros((1000, 333), bool)
    mask.reshape(-1)[:100_001] = True
    assert jp.sparsity(mask) == np.float32(232_999 / 333_000)


@pytest.mark.parametrize("kept", [0, 7, 2**31 + 1, 2**32 - 1, 2**32 + 1, 2**33])
def test_sizes_beyond_32_bits(kept, monkeypatch):
    # Nothing reads the leaves here, so XLA does not make them; the counting of leaves
    # of such sizes has tests of its own.
    words = jax.tree.map(jnp.asarray, _uint64.wide([kept, 0, 0]))
    monkeypatch.setattr(_counting, "count_true", lambda _: words)
    shapes = [(2**12, 2**20), (2**12, 2**20 - 1), (2**12,)]
    got = jax.jit(lambda: jp.sparsity([jnp.zeros(s, bool) for s in shapes]))()
    np.testing.assert_allclose(got, (2**33 - kept) / 2**33, rtol=ULP)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_masks(axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    params = {"w": jnp.zeros((512, 256)), "b": jnp.zeros(256)}
    mask = random_mask(0, params)
    specs = {"w": P("x", "y"), "b": P("y")}
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    sharded = jax.device_put(mask, shardings)
    np.testing.assert_allclose(
        jax.jit(jp.sparsity)(sharded), jp.sparsity(mask), rtol=ULP
    )
    assert jp.summary(params, sharded, axis=-2) == jp.summary(params, mask, axis=-2)
    text = jax.jit(jp.sparsity).lower(sharded).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text


# summary


@pytest.mark.parametrize("seed", range(5))
def test_rows_and_totals(seed):
    mask = random_mask(seed)
    summary = jp.summary(PARAMS, mask, axis=INPUTS)
    for row, name in zip(summary.rows, sorted(SHAPES), strict=True):
        leaf = np.asarray(mask[name])
        dead = (~leaf.any(axis=tuple(range(leaf.ndim - 1)))).sum() if leaf.ndim else 0
        assert row == (
            name,
            SHAPES[name],
            name in ("conv", "dense"),
            leaf.sum(),
            leaf.size,
            (leaf.size - leaf.sum()) / leaf.size,
            dead if leaf.ndim >= 2 else 0,
        )
        assert type(row.kept) is int and type(row.sparsity) is float
    matrices = {name: mask[name] for name in ("conv", "dense")}
    assert summary.prunable[:2] == (kept(matrices), size(matrices))
    assert summary.total[:2] == (kept(mask), size(mask))


def dead_units(n):
    return jnp.ones((3, 3, 2, 8), bool).at[..., :n].set(False)


NOTHING_REMOVED = "no prunable weight is removed."
ONE_REMOVED = dead_units(0).at[0, 0, 0, 0].set(False)
WARNINGS = {
    "none": ("conv", ONE_REMOVED, 0, ()),
    "nothing is removed": ("conv", dead_units(0), 0, (NOTHING_REMOVED,)),
    "dead units": (
        "conv",
        dead_units(3),
        3,
        ("conv: 3 of 8 units have no incoming weight left (dead units).",),
    ),
    "layer collapse": (
        "conv",
        dead_units(8),
        8,
        ("conv: no weight is kept (layer collapse).",),
    ),
    "a dead input": ("dense", jnp.ones((8, 4), bool).at[0].set(False), 0, ()),
    "a bias": ("bias", jnp.arange(4) < 1, 0, (NOTHING_REMOVED,)),
    "an emptied bias": (
        "bias",
        jnp.zeros(4, bool),
        0,
        ("bias: no weight is kept (layer collapse).", NOTHING_REMOVED),
    ),
}


@pytest.mark.parametrize("case", WARNINGS.values(), ids=WARNINGS.keys())
def test_warnings(case):
    name, leaf, dead, warnings = case
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS) | {name: leaf}
    summary = jp.summary(PARAMS, mask, axis=INPUTS)
    rows = {row.path: row.dead_units for row in summary.rows}
    assert rows == dict.fromkeys(SHAPES, 0) | {name: dead}
    assert summary.warnings == warnings
    assert str(summary).endswith("\n".join(f"Warning: {w}" for w in warnings))


def test_dead_units_are_counted_where_the_layout_is_known():
    kept = jnp.ones((4, 8), bool).at[1].set(False)  # Dead if a row holds an output.
    linear = equinox_linear(jnp.zeros((4, 8)), jnp.zeros(4))
    stack = {"kernel": jnp.zeros((3, 8, 4)), "w": jnp.zeros((8, 4))}
    for params, mask, axis, warning in [
        (linear, kept, None, None),
        (linear, kept, {"weight": 1}, "weight: 1 of 4 units"),
        (stack, kept.T, None, None),  # A stack or a window: it is not known.
        (stack, kept.T, {"kernel": 1}, "kernel: 3 of 12 units"),
        (stack, kept.T, -2, "kernel: 3 of 12 units"),
        (
            {"kernel": nnx.Param(jnp.zeros((8, 4)))},
            kept.T,
            None,
            "kernel/value: 1 of 4",
        ),
        ({"weight": jnp.zeros((8, 4))}, kept.T, None, None),
    ]:
        mask = jax.tree.map(
            lambda p, m=mask: jnp.broadcast_to(m if p.ndim > 1 else True, p.shape),
            params,
        )
        found = jp.summary(params, mask, axis=axis).warnings
        assert not found if warning is None else found[0].startswith(warning)


def test_pruned_scales_and_stacked_biases_are_named():
    params = {"norm": {"scale": jnp.ones((4, 8)), "bias": jnp.ones((4, 8))}}
    params |= {"up": {"kernel": jnp.ones((4, 8, 8)), "bias": jnp.ones((4, 8))}}
    for prunable, named in [
        (jp.matrices, ["norm/bias", "norm/scale", "up/bias"]),
        (jp.by_path("scale"), ["norm/scale"]),
        (jp.stacked("norm|up"), []),
    ]:
        mask = jp.global_mask(
            jp.random(jax.random.key(0))(params), 0.5, prunable=prunable
        )
        warnings = jp.summary(params, mask, prunable=prunable).warnings
        assert [w.split(":")[0] for w in warnings] == named
        assert all("stacked(pattern)" in warning for warning in warnings)


def test_units_of_a_leaf_that_may_not_be_pruned_are_not_dead():
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)
    mask |= {"conv": dead_units(3)}
    only = jp.by_path("dense")
    summary = jp.summary(PARAMS, mask, prunable=only, axis=INPUTS)
    assert summary.warnings == (NOTHING_REMOVED,)


def test_a_vector_has_no_dead_units():
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)
    mask |= {"bias": jnp.arange(4) < 1}
    assert jp.summary(PARAMS, mask, prunable=jp.by_path("bias")).warnings == ()


def test_empty_leaves():
    params = {"w": jnp.zeros((0, 3)), "v": jnp.zeros((2, 2))}
    mask = {"w": jnp.zeros((0, 3), bool), "v": jnp.eye(2) > 0}
    row = jp.summary(params, mask).rows[1]
    assert (row.kept, row.size, row.sparsity) == (0, 0, 0.0)
    assert "collapse" not in str(jp.summary(params, mask))
    assert jp.sparsity(mask) == 0.5


def test_the_table_is_aligned_and_narrow():
    params = {
        "stem/conv": jnp.zeros((3, 3, 3, 64)),
        "a_block_with_a_longer_name": {"kernel": jnp.zeros((1000, 2000))},
    }
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    mask["stem/conv"] = mask["stem/conv"].at[0, 0, 0, 0].set(False)
    lines = str(jp.summary(params, mask)).splitlines()
    assert len(lines) == 7
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 100
    assert lines[2].split("  ")[0] == "a_block_with_a_longer_name/kernel"
    assert "2,000,000" in lines[2]


def test_a_notebook_shows_the_table():
    params = {"a<b": jnp.ones((2, 4)), "bias": jnp.ones(4)}
    mask = {"a<b": jnp.arange(8).reshape(2, 4) < 2, "bias": jnp.ones(4, bool)}
    summary = jp.summary(params, mask, axis=-2)
    assert repr(summary) == str(summary)
    root = ElementTree.fromstring(f"<div>{summary._repr_html_()}</div>")
    cells = [[cell.text or "" for cell in row] for row in root.iter("tr")]
    lines = [line for line in str(summary).splitlines() if not line.startswith("-")]
    shown = [line.replace(" ", "") for line in lines[:-1]]
    assert ["".join(row).replace(" ", "") for row in cells] == shown
    assert [p.text for p in root.iter("p")] == lines[-1:]


def test_parameters_may_be_abstract():
    mask = random_mask(0)
    params = jax.eval_shape(lambda: PARAMS)
    assert jp.summary(params, mask) == jp.summary(PARAMS, mask)
    assert jp.sparsity(mask, params) == jp.sparsity(mask, PARAMS)


# Bad input.

FULL = jax.tree.map(lambda p: np.ones(p.shape, bool), PARAMS)
BAD = {
    "structure": (
        ValueError,
        "lacks bias",
        {k: FULL[k] for k in ("conv", "dense", "scale")},
    ),
    "shape": (
        ValueError,
        r"leaf dense has shape \(4, 8\)",
        FULL | {"dense": FULL["dense"].T},
    ),
    "dtype": (TypeError, "leaf conv is float32.*bool", FULL | {"conv": PARAMS["conv"]}),
}


@pytest.mark.usefixtures("no_type_checker")
@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize(
    "fn", [jp.summary, lambda p, m: jp.sparsity(m, p)], ids=["summary", "sparsity"]
)
def test_bad_masks(fn, case):
    error, match, mask = case
    with pytest.raises(error, match=match):
        fn(PARAMS, mask)


@pytest.mark.parametrize(
    "params", [{"bias": jnp.zeros(3)}, {"i": jnp.zeros((2, 2), int)}]
)
def test_nothing_prunable(params):
    mask = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    with pytest.raises(ValueError, match="Nothing is prunable"):
        jp.summary(params, mask)
    with pytest.raises(ValueError, match="Nothing is prunable"):
        jp.sparsity(mask, params)
    assert jp.sparsity(mask) == 0


@pytest.mark.parametrize("mask", [{}, [np.zeros((0, 3), bool)]])
def test_no_weights(mask):
    with pytest.raises(ValueError, match="no weights to count"):
        jp.sparsity(mask)


@pytest.mark.usefixtures("no_type_checker")
def test_dtype_is_checked_without_params():
    with pytest.raises(TypeError, match="leaf w is int32"):
        jp.sparsity({"w": jnp.ones((2, 2), jnp.int32)})


def test_summary_of_a_tracer_is_refused():
    with pytest.raises(TypeError, match=r"leaf bias .*outside jit.*jp\.sparsity"):
        jax.jit(lambda m: jp.summary(PARAMS, m).total.kept)(FULL)
