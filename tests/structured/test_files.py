"""Shrunk models as files. What all files promise is in test_archive."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune import structured
from tests.structured.harness import arrays, close, normal, random_scores


def fn(params, x):
    x = jax.nn.relu(x @ params["a"] + params["bias"][None])
    return x @ params["b"]


PARAMS = arrays(a=(4, 8), bias=(8,), b=(8, 3))
X = normal(5, 4)
GROUPS = structured.channel_groups(fn, PARAMS, X)
MASK = structured.structured_mask(random_scores(GROUPS), GROUPS, PARAMS, 0.5)
SHAPES = jax.eval_shape(lambda: PARAMS)


@pytest.fixture
def small():
    return structured.shrink(fn, PARAMS, MASK, GROUPS)[1]


@pytest.fixture
def path(tmp_path, small):
    structured.save(tmp_path / "small.safetensors", small, MASK, GROUPS)
    return tmp_path / "small.safetensors"


def test_a_file_and_the_full_function_give_the_small_one(path, small):
    small_fn, params = structured.load(path, fn, SHAPES)
    chex.assert_trees_all_equal(params, small)
    close(small_fn(params, X), fn(jp.apply_mask(PARAMS, MASK), X))


FRESH = """
import sys, jax, jax.numpy as jnp, numpy as np
from jaxprune import structured
def fn(params, x):
    x = jax.nn.relu(x @ params["a"] + params["bias"][None])
    return x @ params["b"]
shapes = {"a": (4, 8), "bias": (8,), "b": (8, 3)}
shapes = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
small_fn, params = structured.load(sys.argv[1], fn, shapes)
np.save(sys.argv[2], small_fn(params, np.load(sys.argv[3])))
"""


def test_another_process_needs_the_file_and_the_code_alone(path, tmp_path):
    given, out = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(given, X)
    command = [sys.executable, "-c", FRESH, path, out, given]
    root = str(pathlib.Path(structured.__file__).parents[2])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": root})
    close(np.load(out), fn(jp.apply_mask(PARAMS, MASK), X))


class Pair(NamedTuple):
    first: object
    second: object


def nested(tree, x):
    layers, (pair, _) = tree["layers"], tree["rest"]
    hidden = jnp.tanh(x @ layers[0].astype(jnp.float32) + pair.first[None])
    return hidden @ pair.second.astype(jnp.float32)


NARROW_TYPES = "bfloat16 float16 float8_e4m3fn float8_e5m2 float32".split()


@pytest.mark.parametrize("dtype", NARROW_TYPES)
def test_any_tree_and_any_type_survive(tmp_path, dtype):
    rng = np.random.default_rng(0)
    whole = jnp.asarray(rng.integers(-8, 8, (2, 3)), jnp.int4)
    others = {"int4": whole, "flag": jnp.array(True), "key": jax.random.key(3)}
    tree = {
        "layers": [normal(4, 8).astype(dtype)],
        "rest": (Pair(normal(8), normal(8, 2, seed=3).astype(dtype)), others),
    }
    groups = structured.channel_groups(nested, tree, X)
    mask = structured.structured_mask(random_scores(groups), groups, tree, 0.5)
    small_fn, small = structured.shrink(nested, tree, mask, groups)
    structured.save(tmp_path / "small", small, mask, groups)
    again_fn, again = structured.load(tmp_path / "small", nested, tree)
    assert small["layers"][0].shape == (4, 4)
    assert jax.tree.structure(again) == jax.tree.structure(small)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(small), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    np.testing.assert_array_equal(again_fn(again, X), small_fn(small, X))


def test_the_state_of_an_nnx_model(tmp_path):
    def make():
        return nnx.Sequential(
            nnx.Linear(4, 16, rngs=nnx.Rngs(0)),
            nnx.BatchNorm(16, use_running_average=True, rngs=nnx.Rngs(0)),
            nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(1)),
            nnx.Linear(16, 3, rngs=nnx.Rngs(0)),
        )

    graphdef, state = nnx.split(make())

    def apply_fn(state, x):
        return nnx.merge(graphdef, state, copy=True)(x)

    groups = structured.channel_groups(apply_fn, state, X)
    mask = structured.structured_mask(random_scores(groups), groups, state, 0.75)
    small_fn, small = structured.shrink(apply_fn, state, mask, groups)
    structured.save(tmp_path / "small", small, mask, groups)
    shapes = nnx.state(nnx.eval_shape(make))
    again_fn, again = structured.load(tmp_path / "small", apply_fn, shapes)
    np.testing.assert_array_equal(again_fn(again, X), small_fn(small, X))


def test_a_model_trained_on_in_another_type_is_loaded_in_that_type(tmp_path, small):
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), small)
    structured.save(tmp_path / "half", half, MASK, GROUPS)
    with pytest.raises(ValueError, match=r"leaf a of .* is bfloat16, .* float32"):
        structured.load(tmp_path / "half", fn, SHAPES)
    shapes = jax.tree.map(lambda p: p.update(dtype=jnp.bfloat16), SHAPES)
    small_fn, params = structured.load(tmp_path / "half", fn, shapes)
    found = small_fn(params, X.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    wanted = fn(jp.apply_mask(PARAMS, MASK), X)
    np.testing.assert_allclose(found.astype(np.float32), wanted, rtol=0.05, atol=0.05)


def test_a_mismatch_names_the_leaf(path, small):
    rest = {name: SHAPES[name] for name in ("a", "b")}
    with pytest.raises(ValueError, match="has a leaf bias, which params lacks"):
        structured.load(path, fn, rest)
    with pytest.raises(ValueError, match=r"params has a leaf c, which .* lacks"):
        structured.load(path, fn, {**SHAPES, "c": SHAPES["a"]})
    other = {**SHAPES, "b": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    with pytest.raises(ValueError, match=r"leaf b of .* was \(8, 3\), .* \(8, 4\)"):
        structured.load(path, fn, other)
    with pytest.raises(
        ValueError, match=r"leaf a has shape \(4, 8\), expected \(4, 4\)"
    ):
        structured.save(path, PARAMS, MASK, GROUPS)
    chex.assert_trees_all_equal(structured.load(path, fn, SHAPES)[1], small)


def test_a_function_that_couples_other_channels_is_refused(path):
    def sorts(params, x):
        return jnp.sort(x @ params["a"] + params["bias"][None], -1) @ params["b"]

    small_fn, params = structured.load(path, sorts, SHAPES)
    with pytest.raises(ValueError, match="sort orders it"):
        small_fn(params, X)


def test_paths_that_two_leaves_share_are_refused(tmp_path):
    tree = {"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}
    mask = jax.tree.map(lambda p: p > 0, tree)
    with pytest.raises(ValueError, match="more than one leaf with the path a/b"):
        structured.save(tmp_path / "x", tree, mask, ())
    assert not os.listdir(tmp_path)
