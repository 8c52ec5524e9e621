"""Models as files. What all files promise is in test_archive."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.io import _archive
from tests.helpers import normal

safetensors = pytest.importorskip("safetensors.numpy")

PARAMS = {
    "layers": [normal(0, w=(6, 8)), {"w": jnp.ones((8, 3), jnp.bfloat16)}],
    "shift": jnp.arange(3),
}
X = normal(1, x=(4, 6))["x"]
MASK = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 3 != 1, PARAMS)


def fn(params, x):
    hidden = jnp.tanh(x @ params["layers"][0]["w"])
    head = params["layers"][1]["w"].astype(jnp.float32)
    return hidden @ head + params["shift"].astype(jnp.float32)[None]


@pytest.fixture
def folder(tmp_path):
    jp.save_model(tmp_path / "model", fn, PARAMS, X, mask=MASK)
    return tmp_path / "model"


def test_a_sparse_model_comes_back_with_its_mask(folder):
    model = jp.load_model(folder)
    names = ["layers/0/w", "layers/1/w", "shift"]
    assert sorted(model.params) == names
    masked = jax.tree.leaves(
        jax.tree.map(
            lambda p, m: np.where(m, p, np.zeros_like(p)), jax.device_get(PARAMS), MASK
        )
    )
    for name, wanted, mask in zip(names, masked, jax.tree.leaves(MASK), strict=True):
        assert model.params[name].dtype == wanted.dtype
        np.testing.assert_array_equal(model.params[name], wanted)
        np.testing.assert_array_equal(model.mask[name], mask)
    ours = jax.jit(model.fn)(model.params, X)
    wanted = fn(jax.tree.unflatten(jax.tree.structure(PARAMS), masked), X)
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


def test_others_read_the_files_without_this_library(tmp_path):
    params = {"w": jnp.array([[1.0, 2.0]])}
    mask = {"w": jnp.array([[True, False]])}
    jp.save_model(tmp_path, lambda p, x: p["w"] * x, params, X[:1, :2], mask=mask)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(tensors["w"], [[1.0, 0.0]])
    data = bytearray((tmp_path / "model.export").read_bytes())
    out = jax.export.deserialize(data).call({"w": tensors["w"]}, X[:1, :2])
    np.testing.assert_array_equal(out, [[X[0, 0], 0.0]])


def test_a_shrunk_model_comes_back_smaller(tmp_path):
    params = normal(2, a=(6, 8), b=(8, 3))

    def net(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    groups = jp.structured.channel_groups(net, params, X)
    scores = jp.structured.group_scores(jp.magnitude(params), groups)
    mask = jp.structured.structured_mask(scores, groups, params, 0.5)
    small_fn, small = jp.structured.shrink(net, params, mask, groups)
    jp.save_model(tmp_path, small_fn, small, X)
    model = jp.load_model(tmp_path)
    assert model.mask is None and model.params["a"].shape == (6, 4)
    wanted = net(jp.apply_mask(params, mask), X)
    chex.assert_trees_all_close(model.fn(model.params, X), wanted, rtol=1e-5, atol=1e-6)


def test_a_symbolic_batch_takes_any_number_of_rows(tmp_path):
    (rows,) = jax.export.symbolic_shape("rows")
    inputs = jax.ShapeDtypeStruct((rows, 6), X.dtype)
    jp.save_model(tmp_path, fn, PARAMS, inputs)
    model = jp.load_model(tmp_path)
    for n in (1, 4):
        ours, wanted = model.fn(model.params, X[:n]), fn(PARAMS, X[:n])
        chex.assert_trees_all_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_what_does_not_belong_together_is_refused(folder):
    weights, function = folder / "model.safetensors", folder / "model.export"
    serialized = function.read_bytes()
    function.write_bytes(serialized[:-1])
    with pytest.raises(ValueError, match=r"model\.export is truncated"):
        jp.load_model(folder)
    function.write_bytes(serialized)
    kind = "jaxprune.model 2"
    specification, tensors = _archive.read(weights, kind, "save_model")
    tensors["layers/0/w"] = np.ones((6, 8), np.float32)
    _archive.write(weights, kind, specification, tensors)
    with pytest.raises(ValueError, match=r"layers/0/w of .* not 0"):
        jp.load_model(folder)
    tensors["layers/0/w"] = np.zeros((6, 8), np.float16)
    _archive.write(weights, kind, specification, tensors)
    with pytest.raises(ValueError, match=r"w of .* is float16.* takes float32\[6, 8\]"):
        jp.load_model(folder)
    safetensors.save_file({"w": np.ones(3)}, weights)
    with pytest.raises(ValueError, match="of the format None"):
        jp.load_model(folder)


def test_keys_are_refused_by_their_path(tmp_path):
    with pytest.raises(TypeError, match="The leaf rng is key"):
        jp.save_model(tmp_path, lambda p: p["rng"], {"rng": jax.random.key(0)})
