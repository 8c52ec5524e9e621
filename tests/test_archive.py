"""What every file of ours promises: whole or not there, verified, exact to the bit."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import jaxprune as jp
from jaxprune import structured

pytest.importorskip("flatbuffers")

NARROW = """bool int4 uint4 int8 int16 int32 uint8 uint16 uint32 float16 bfloat16
    float32 complex64 float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz float8_e4m3fnuz
    float8_e5m2fnuz float8_e3m4 float8_e4m3 float8_e8m0fnu float4_e2m1fn""".split()
NO_ZERO = "float8_e8m0fnu"
WIDE = ["int64", "uint64", "float64", "complex128"]
SHAPES = [(), (0, 3), (1,), (7,), (2, 3, 4)]
RNG = np.random.default_rng(0)


def bits(dtype, shape):
    """Random bits: infinities, -0 and NaNs of any payload are among the floats."""
    dtype = jnp.dtype(dtype)
    if dtype.name in ("bool", "int4", "uint4", "float4_e2m1fn"):
        return RNG.integers(0, 2, shape).astype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(RNG.bytes(size), dtype).reshape(shape).copy()


def equal(one, other):
    one, other = np.asarray(one), np.asarray(other)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


def saved_and_loaded(tmp_path, params):
    """Through both formats that hold parameters; NumPy's arrays and JAX's."""
    for tree in (params, jax.tree.map(jnp.asarray, params)):
        jp.save_model(tmp_path / "model", lambda p, x: x, tree, jnp.ones(1))
        model = jp.load_model(tmp_path / "model")
        model.fn(model.params, jnp.ones(1))
        yield model.params
        mask = jax.tree.map(lambda p: np.ones(np.shape(p), bool), tree)
        structured.save(tmp_path / "small", tree, mask, ())
        yield structured.load(tmp_path / "small", lambda p, x: x, tree)[1]


@pytest.mark.parametrize("wide", [False, True])
def test_every_type_and_rank_comes_back_bit_for_bit(tmp_path, wide):
    with jax.enable_x64(wide):
        names = NARROW + WIDE * wide
        params = {f"{n}{s}": bits(n, s) for n in names for s in SHAPES}
        for again in saved_and_loaded(tmp_path, params):
            jax.tree.map(equal, again, params)


def test_a_type_without_zero_cannot_be_pruned(tmp_path):
    params = {"w": bits(NO_ZERO, (4,))}
    with pytest.raises(TypeError, match="leaf w is float8_e8m0fnu, a dtype without 0"):
        jp.save_model(tmp_path, lambda p: 1.0, params, mask={"w": np.arange(4) > 0})


@pytest.mark.parametrize(
    "leaf",
    [*(np.ones(2, n) for n in WIDE), np.ones(2, ">f4"), np.array("a"), 1.0],
    ids=[*WIDE, "big-endian", "text", "float"],
)
def test_what_could_not_be_loaded_is_refused_by_its_path(tmp_path, leaf):
    with pytest.raises(TypeError, match="leaf a/b"):
        jp.save_model(tmp_path, lambda p: 1.0, {"a": {"b": leaf}})
    with pytest.raises(TypeError, match="a/b"):
        tree = {"a": {"b": leaf}}
        mask = {"a": {"b": np.ones(np.shape(leaf), bool)}}
        structured.save(tmp_path / "x", tree, mask, ())
    assert not os.listdir(tmp_path)


def test_a_file_of_wide_types_needs_them_to_be_on(tmp_path):
    with jax.enable_x64(True):
        jp.save_model(tmp_path, lambda p, x: x, {"w": np.ones(2)}, jnp.ones(1))
    with pytest.raises(ValueError, match="leaf w is float64: set jax_enable_x64"):
        jp.load_model(tmp_path)


def test_names_that_a_file_cannot_tell_apart_are_refused(tmp_path):
    w = jnp.ones(2)
    for tree in ({"a": {"b": w}, "a/b": w}, {"w": w, "w::mask": w}):
        with pytest.raises(ValueError, match="more than one leaf with the path"):
            jp.save_model(tmp_path, lambda p: p, tree)
    with pytest.raises(ValueError, match="the path __metadata__"):
        jp.save_mask(tmp_path / "x", {"__metadata__": w > 0})
    assert not os.listdir(tmp_path)


# Sparse layouts.


def two_of_four(shape, axis):
    moved = np.moveaxis(np.empty(shape), axis, -1).shape
    order = RNG.random((*moved[:-1], moved[-1] // 4, 4)).argsort(-1).argsort(-1)
    return np.moveaxis((order < 2).reshape(moved), -1, axis)


SHAPE = (8, 12, 16)
PATTERNS = {
    "bitmask": RNG.random(SHAPE) < 0.3,
    **{f"2:4 along {axis}": two_of_four(SHAPE, axis) for axis in range(3)},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_sparse_leaves_come_back_bit_for_bit(tmp_path, name):
    kept, layout = PATTERNS[name], name.split()[0]
    dense = {n: bits(n, SHAPE) for n in NARROW if n != NO_ZERO}
    params = {n: np.where(kept, p, np.zeros_like(p)) for n, p in dense.items()}
    params["float32"][tuple(np.argwhere(kept)[0])] = -0.0  # A value, as NaN is.
    mask = dict.fromkeys(params, kept)
    for given in (None, mask):
        folder = tmp_path / f"{given is None}"
        jp.save_model(folder, lambda p, x: x, params, jnp.ones(1), mask=given)
        model = jp.load_model(folder)
        jax.tree.map(equal, model.params, params)
        if given is not None:
            jax.tree.map(equal, model.mask, mask)
        with safe_open(folder / "model.safetensors", "np") as file:
            words = json.loads(file.metadata()["jaxprune"])
    assert {fact["layout"] for fact in words["leaves"]} == {layout}


def test_files_shrink_with_the_weights(tmp_path):
    params = {"w": jnp.asarray(RNG.normal(size=(64, 256)), jnp.bfloat16)}
    fours = jp.n_m_mask(jp.magnitude(params), 2, 4)
    sizes = {}
    for name, mask, compress in [
        ("dense", None, True),
        ("plain", jp.global_mask(jp.magnitude(params), 0.9), False),
        ("sparse", jp.global_mask(jp.magnitude(params), 0.9), True),
        ("fours", fours, True),
    ]:
        jp.save_model(
            tmp_path, lambda p, x: x, params, jnp.ones(1), mask=mask, compress=compress
        )
        sizes[name] = (tmp_path / "model.safetensors").stat().st_size
        if name == "plain":
            tensors = {"w", "w::mask"}
            assert load_file(tmp_path / "model.safetensors").keys() == tensors
    weights, bitmask = 64 * 256 * 2, 64 * 256 / 8
    for name, size in {
        "dense": weights,
        "plain": weights + bitmask,
        "sparse": round(0.1 * 64 * 256) * 2 + bitmask,
        "fours": weights / 2 + bitmask,
    }.items():
        assert size < sizes[name] < size + 1024
    # Read by the documented layout alone: two bits a value.
    file = load_file(tmp_path / "model.safetensors")
    values, indices = file["w::values"], file["w::indices"]
    place = np.unpackbits(indices).reshape(-1, 2) @ [2, 1]
    rows = 4 * (np.arange(32) // 2)[:, None] + place.reshape(values.shape)
    dense = np.zeros((64, 256), values.dtype)
    np.put_along_axis(dense, rows, values, 0)
    equal(dense, jp.apply_mask(params, fours)["w"])


# The three kinds of file.

PARAMS = {"b": jnp.ones(3), "w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
MASK = {"b": np.ones(3, bool), "w": np.asarray(PARAMS["w"] > 0)}
FULL = jax.tree.map(np.ones_like, MASK)
FILES = {
    "save_mask": (
        lambda path, value=MASK: jp.save_mask(path, value),
        lambda path: jp.load_mask(path, PARAMS),
    ),
    "save": (
        lambda path, value=PARAMS: structured.save(path, value, FULL, ()),
        lambda path: structured.load(path, lambda p, x: x, PARAMS)[1],
    ),
    "save_model": (
        lambda path, value=PARAMS: jp.save_model(
            path.parent, lambda p, x: x, value, jnp.ones(1), mask=MASK
        ),
        lambda path: jp.load_model(path.parent)[1:],
    ),
}
each_file = pytest.mark.parametrize("writer", FILES)


@pytest.fixture
def path(tmp_path, writer):
    path = tmp_path / "model.safetensors"
    FILES[writer][0](path)
    return path


@each_file
def test_truncations_and_flipped_bits_are_found(path, writer):
    read, content = FILES[writer][1], path.read_bytes()
    wanted = read(path)
    load_file(path)  # A safetensors file for everyone.
    for size in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"truncated.*file that {writer} wrote"):
            read(path)
    unseen = 0
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(changed)
        try:
            jax.tree.map(equal, read(path), wanted)  # Nothing that is read changed.
            unseen += 1
        except ValueError as error:
            assert "altered" in str(error) or "format" in str(error)
    assert unseen <= 8  # The padding of the header, if any byte.
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"Write it with .*{writer}"):
        read(path)


@each_file
def test_other_formats_are_named(path, writer):
    for other, (write, _) in FILES.items():
        write(path)
        if other != writer:
            with pytest.raises(ValueError, match=r"of the format 'jaxprune\..* reads"):
                FILES[writer][1](path)
    np.savez(path.with_suffix(".npz"), a=np.ones(3))
    os.replace(path.with_suffix(".npz"), path)
    with pytest.raises(ValueError, match=f"not a file that {writer} wrote"):
        FILES[writer][1](path)


@each_file
def test_a_write_that_fails_leaves_the_old_files(path, writer, monkeypatch):
    def full(file):
        raise OSError("No space left on device")

    before = {
        name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)
    }
    monkeypatch.setattr(os, "fsync", full)
    other = jax.tree.map(jnp.logical_not, MASK) if writer == "save_mask" else {}
    with pytest.raises(OSError, match="No space"):
        FILES[writer][0](path, other or jax.tree.map(lambda p: p + 1, PARAMS))
    for name, content in before.items():
        assert (path.parent / name).read_bytes() == content
    assert len(os.listdir(path.parent)) == len(before)
