"""Masks as files, one bit a weight. What all files promise is in test_archive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors.numpy import load_file

import jaxprune as jp
from tests.helpers import MASK, PARAMS

LARGE = {"w": np.random.default_rng(0).random((333, 77)) < 0.3}


@pytest.fixture
def path(tmp_path):
    jp.save_mask(tmp_path / "mask.safetensors", MASK)
    return tmp_path / "mask.safetensors"


def test_a_mask_comes_back_for_arrays_and_for_shapes(path):
    for params in (PARAMS, jax.eval_shape(lambda: PARAMS)):
        again = jp.load_mask(path, params)
        assert {leaf.dtype for leaf in again.values()} == {jnp.dtype(bool)}
        jax.tree.map(np.testing.assert_array_equal, again, MASK)


def test_any_tree_any_rank_and_no_weights(tmp_path):
    mask = [np.bool_(True), (np.zeros((0, 4), bool), np.arange(9) % 2 == 0), LARGE]
    jp.save_mask(str(tmp_path / "m"), mask)
    again = jp.load_mask(str(tmp_path / "m"), mask)
    assert jax.tree.structure(again) == jax.tree.structure(mask)
    jax.tree.map(np.testing.assert_array_equal, again, mask)


def test_a_weight_takes_one_bit(tmp_path):
    jp.save_mask(tmp_path / "m", LARGE)
    bits = LARGE["w"].size
    assert bits / 8 < (tmp_path / "m").stat().st_size < bits / 8 + 2048
    (packed,) = load_file(tmp_path / "m").values()
    assert packed.size == -(-bits // 8)
    counted = sum(int(byte).bit_count() for byte in packed)
    assert counted == LARGE["w"].sum()


def test_a_mask_goes_from_one_sharding_to_another(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    mask = jnp.arange(64).reshape(8, 8) % 3 == 0
    cut = jax.device_put(mask, NamedSharding(mesh, jax.P("x", None)))
    jp.save_mask(tmp_path / "m", {"w": cut})
    where = NamedSharding(mesh, jax.P(None, ("y", "x")))
    like = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=where)
    again = jp.load_mask(tmp_path / "m", {"w": like})["w"]
    assert again.sharding == where
    np.testing.assert_array_equal(again, mask)


def test_what_does_not_fit_is_named(path):
    with pytest.raises(ValueError, match="has a leaf bias, which params lacks"):
        jp.load_mask(path, {name: PARAMS[name] for name in ("kernel", "head")})
    with pytest.raises(ValueError, match=r"params has a leaf c, which .* lacks"):
        jp.load_mask(path, {**PARAMS, "c": PARAMS["bias"]})
    with pytest.raises(ValueError, match=r"leaf head .* is \(3, 2\), .* \(2, 3\)"):
        jp.load_mask(path, {**PARAMS, "head": jnp.ones((2, 3))})
    with pytest.raises(TypeError, match="the leaf bias is int32, but a mask is bool"):
        jp.save_mask(path, {**MASK, "bias": jnp.arange(3)})
    with pytest.raises(ValueError, match="more than one leaf with the path a/b"):
        jp.save_mask(path, {"a": {"b": MASK["bias"]}, "a/b": MASK["bias"]})
    with pytest.raises(ValueError, match="mask has no leaves"):
        jp.save_mask(path, {})
    with pytest.raises(FileNotFoundError):
        jp.load_mask(path.with_name("none"), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, jp.load_mask(path, PARAMS), MASK)
