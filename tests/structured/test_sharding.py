"""Sharded parameters are shrunk on their mesh, and stay sharded where sizes divide."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune import structured
from tests.structured.harness import arrays, close, normal, random_scores

PARAMS = arrays(w=(8, 16), b=(16,), u=(16, 12), scale=(12,), v=(12, 4))
SPECS = {"w": P("x", "y"), "b": P("y"), "u": P("y", "x"), "scale": P(), "v": P("x")}
X = normal(8, 8)
# Of the 16 and the 12 channels: how many stay, and the specs of what is left.
CASES = {
    "divides": ((8, 4), SPECS),
    "does not": (
        (6, 3),
        {"w": P("x", "y"), "b": P("y"), "u": P("y"), "scale": P(), "v": P()},
    ),
    "nowhere": ((3, 5), {"w": P("x"), "b": P(), "u": P(), "scale": P(), "v": P()}),
}
each_case = pytest.mark.parametrize("case", CASES)


@contextlib.contextmanager
def meshed(axis_type):
    """Puts parameters on a 4x2 mesh, and returns a product that states its sharding."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)

    def place(tree):
        return {k: jax.device_put(v, NamedSharding(mesh, SPECS[k])) for k, v in tree}

    def matmul(x, w):
        if axis_type == AxisType.Explicit:
            return jnp.matmul(x, w, out_sharding=P(None, None))
        return x @ w

    with jax.set_mesh(mesh):
        yield place, matmul


def model(matmul):
    def fn(params, x):
        hidden = jax.nn.relu(matmul(x, params["w"]) + params["b"])
        hidden = matmul(hidden, params["u"])
        mean = (hidden**2).mean(-1, keepdims=True)
        return matmul(
            hidden * jax.lax.rsqrt(mean + 1e-3) * params["scale"], params["v"]
        )

    return fn


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@each_case
def test_results_are_right_and_shardings_stay_where_they_can(axis_type, case):
    widths, specs = CASES[case]
    with meshed(axis_type) as (place, matmul):
        fn, params = model(matmul), place(PARAMS.items())
        groups = structured.channel_groups(fn, params, X)
        assert [group.size for group in groups] == [16, 12]
        ranks = [np.argsort(np.argsort(-s)) for s in random_scores(groups)]
        scores = [(r < n).astype(float) for r, n in zip(ranks, widths, strict=True)]
        mask = structured.structured_mask(scores, groups, params, 1 - sum(widths) / 28)
        kept = np.flatnonzero(ranks[0] < widths[0])[0]
        mask["w"] = jnp.asarray(mask["w"]).at[2, kept].set(False)  # One more weight.
        mask = place(mask.items())
        small_fn, small = structured.shrink(fn, params, mask, groups)
        assert small["u"].shape == widths
        for name, leaf in small.items():
            wanted = NamedSharding(leaf.sharding.mesh, specs[name])
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), name

        def loss(fn):
            return lambda p: (fn(p, X) ** 2).sum()

        found = small_fn(small, X), jax.grad(loss(small_fn))(small)
        moments = optax.sgd(0.1, momentum=0.9).init(params)
        narrow = optax.tree.get(structured.narrow(moments, mask, groups), "trace")
        assert jax.tree.map(jax.typeof, narrow) == jax.tree.map(jax.typeof, small)
    whole = jax.tree.map(np.asarray, mask)
    alone, masked = model(jnp.matmul), jp.apply_mask(PARAMS, whole)
    gradient = structured.narrow(jax.grad(loss(alone))(masked), whole, groups)
    for one, other in zip(found, (alone(masked, X), gradient), strict=True):
        close(jax.tree.map(np.asarray, one), other, 3e-5)


def test_rounding_keeps_every_axis_sharded():
    with meshed(AxisType.Auto) as (place, matmul):
        fn, params = model(matmul), place(PARAMS.items())
        groups = structured.channel_groups(fn, params, X)
        mask = structured.structured_mask(
            random_scores(groups), groups, params, 0.5, round_to=4
        )
        _, small = structured.shrink(fn, params, mask, groups)
        for name, leaf in small.items():
            same = params[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
            assert same, name
        assert small["u"].size < params["u"].size


def test_a_file_is_loaded_onto_the_mesh(tmp_path):
    with meshed(AxisType.Auto) as (place, matmul):
        fn, params = model(matmul), place(PARAMS.items())
        groups = structured.channel_groups(fn, params, X)
        scores = [np.arange(16.0), np.arange(12.0)]
        mask = structured.structured_mask(scores, groups, params, 0.5, scope="group")
        small_fn, small = structured.shrink(fn, params, mask, groups)
        structured.save(tmp_path / "small", small, mask, groups)
        shapes = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding),
            params,
        )
        again_fn, again = structured.load(tmp_path / "small", fn, shapes)
        for name, leaf in again.items():
            assert leaf.sharding.is_equivalent_to(small[name].sharding, leaf.ndim)
        close(again_fn(again, X), small_fn(small, X))
