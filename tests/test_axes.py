"""N:M and rows along a layer's inputs, wherever its leaf has them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from tests.helpers import normal


def kept_of_four(mask, inputs):
    """How many of every four inputs of an output a leaf's mask keeps."""
    rows = np.moveaxis(np.asarray(mask), inputs, range(len(inputs)))
    size = np.prod([mask.shape[i] for i in inputs])
    return {*rows.reshape(size // 4, 4, -1).sum(1).ravel().tolist()}


def attention(qkv=16):
    model = nnx.MultiHeadAttention(4, 16, qkv, decode=False, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    x = jnp.ones((1, 3, 16))
    return lambda p, x: nnx.merge(graphdef, p)(x), nnx.state(params, nnx.Param), x


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("qkv", [16, 24])  # Heads of 4 and of 6: groups cross heads.
def test_two_of_four_inputs_of_attention(known, qkv):
    fn, params, x = attention(qkv)
    if known:
        kernels = jp.by_path("kernel")
        axis = jp.input_axes(fn, params, x, prunable=kernels)
        mask = jp.n_m_mask(jp.magnitude(params), 2, 4, axis=axis)
    else:  # The heads of the output's kernel give the others away.
        mask = jp.n_m_mask(jp.magnitude(params), 2, 4, prunable=jp.by_path("kernel"))
    kernel = {name: mask[name]["kernel"].get_value() for name in mask}
    assert {n: kept_of_four(kernel[n], (0,)) for n in ("query", "key", "value")} == {
        "query": {2},
        "key": {2},
        "value": {2},
    }
    assert kept_of_four(kernel["out"], (0, 1)) == {2}
    assert mask["query"]["bias"].get_value().all()


def test_every_way_to_name_the_axes_is_the_same():
    params = {"blocks": [normal(0, q=(8, 2, 3), o=(2, 4, 8)), normal(1, w=(6, 12))]}
    scores = jp.magnitude(params)
    paths = {"blocks/0/q": 0, "blocks/0/o": (0, 1), "blocks/1/w": -1}
    tree = {"blocks": [{"q": 0, "o": (0, 1)}, {"w": -1}]}
    for build in (
        lambda axis: jp.n_m_mask(scores, 2, 4, axis=axis),
        lambda axis: jp.row_mask(scores, 0.5, axis=axis),
        lambda axis: jp.divisible_by(4, axis=axis)(params),
        lambda axis: (
            jp.gradual_n_m(2, 4, axis=axis)
            .update(params, jp.gradual_n_m(2, 4).init(params), params)[1]
            .mask
        ),
    ):
        one, other = build(paths), build(tree)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    listed = {"a": [params["blocks"][1]["w"]] * 2}  # A list of axes is a tree here.
    mask = jp.n_m_mask(jp.magnitude(listed), 2, 4, axis={"a": [1, -1]})["a"]
    assert kept_of_four(mask[1], (1,)) == {2}
    mask = jp.n_m_mask(scores, 2, 4, axis=tree)["blocks"]
    assert kept_of_four(mask[0]["q"], (0,)) == kept_of_four(mask[1]["w"], (1,)) == {2}
    assert kept_of_four(mask[0]["o"], (0, 1)) == {2}
    rows = jp.row_mask(scores, 0.5, axis=tree)["blocks"][0]["o"]
    assert {*rows.sum((0, 1)).tolist()} == {4}


def test_leaves_without_an_entry_take_no_part():
    params = normal(0, w=(8, 4), v=(6, 4))
    for axis in ({"w": 0}, {"w": 0, "v": None}):
        assert jp.divisible_by(4, axis=axis)(params) == {"w": True, "v": False}
        for mask in (
            jp.n_m_mask(jp.magnitude(params), 2, 4, axis=axis),
            jp.row_mask(jp.magnitude(params), 0.5, axis=axis),
        ):
            assert mask["v"].all() and kept_of_four(mask["w"], (0,)) <= {0, 1, 2, 3, 4}
            assert mask["w"].sum() == 16


def test_inputs_of_an_equinox_layer_come_second():
    linear = eqx.nn.Linear(8, 6, key=jax.random.key(0))
    weights, rest = eqx.partition(linear, eqx.is_inexact_array)

    def fn(weights, x):
        return eqx.combine(weights, rest)(x)

    axis = jp.input_axes(fn, weights, jnp.ones(8))
    mask = jp.n_m_mask(jp.magnitude(weights), 2, 4, axis=axis)
    assert kept_of_four(mask.weight, (1,)) == {2} and mask.bias.all()


def test_what_flax_may_lay_out_in_two_ways_is_refused():
    _, general = nnx.split(nnx.LinearGeneral(16, (4, 8), rngs=nnx.Rngs(0)))
    shapes = {"attention": general, "stack": {"kernel": jnp.ones((3, 8, 8))}}
    for params in shapes.values():
        for build in (
            lambda p: jp.n_m_mask(p, 2, 4, prunable=jp.divisible_by(4)),
            lambda p: jp.row_mask(p, 0.5),
        ):
            with pytest.raises(ValueError, match=r"kernel.*axis=jp\.input_axes.*-2"):
                build(jp.magnitude(params))
    image = jp.magnitude(normal(0, kernel=(3, 3, 8, 4)))  # Only a convolution's.
    mask = jp.n_m_mask(image, 2, 4)["kernel"]
    assert kept_of_four(mask, (0, 1, 2)) == {2}
    assert {*jp.row_mask(image, 0.5)["kernel"].sum((0, 1, 2)).tolist()} == {36}


@pytest.mark.parametrize(
    ("axis", "error", "match"),
    [
        ("inputs", TypeError, "axis must be an integer"),
        (None, TypeError, "axis must be an integer"),
        ({"q": 0}, ValueError, "the paths are w, and axis is {'q': 0}"),
        ([{"w": 0}], ValueError, "a tree of them like params"),
        ({}, ValueError, "axis has no entry for a prunable leaf: w"),
        ({"w": 2}, ValueError, r"leaf w of shape \(8, 4\) has no axis 2"),
        ({"w": ()}, ValueError, "has no axis"),
    ],
)
def test_axes_that_no_leaf_has_are_refused(axis, error, match):
    with pytest.raises(error, match=match):
        jp.n_m_mask({"w": jnp.ones((8, 4))}, 2, 4, axis=axis)


def test_groups_across_sharded_axes():
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    where = jax.sharding.NamedSharding(mesh, jax.P("x", None, "y"))
    scores = jp.magnitude(normal(0, w=(4, 6, 8)))
    cut = {"w": jax.device_put(scores["w"], where)}
    axis = {"w": (0, 1)}
    mask = jp.n_m_mask(cut, 2, 4, axis=axis)["w"]
    assert mask.sharding == where
    np.testing.assert_array_equal(mask, jp.n_m_mask(scores, 2, 4, axis=axis)["w"])
