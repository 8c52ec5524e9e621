"""Checks that every architecture must pass: one call of `check` each."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxprune as jp
from jaxprune import structured
from tests.helpers import QUICK


def randomized(shapes, seed=0):
    """Random values for every leaf, positive where a variance must be."""
    rng = np.random.default_rng(seed)

    def leaf(like):
        if len(like.shape) < 2:
            return jnp.asarray(rng.uniform(0.5, 1.5, like.shape), jnp.float32)
        fan = np.prod(like.shape[:-1])
        return jnp.asarray(rng.normal(0, fan**-0.5, like.shape), jnp.float32)

    return jax.tree.map(leaf, shapes)


def arrays(**shapes):
    shapes = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    return randomized(shapes)


def functional(make):
    """An NNX model as a function of all its state, running statistics included."""
    model = nnx.eval_shape(make)
    model.eval()
    graphdef, state = nnx.split(model)
    state = randomized(nnx.to_pure_dict(state))

    def fn(state, x):
        return nnx.merge(graphdef, state, copy=True)(x)

    return fn, state


def normal(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def written(groups):
    """Groups as plain data: a set of (size, members), a member as "path:axis xrepeats".

    A producing member ends in "!".
    """
    return {
        (
            group.size,
            frozenset(
                f"{m.path}:{m.axis}"
                + (f" x{m.index.shape[1]}" if m.index.shape[1] > 1 else "")
                + "!" * m.produces
                for m in group.members
            ),
        )
        for group in groups
    }


def expected(*groups):
    """Expected groups: ``expected((4, "w:1! b:0 v:0 x9"))``, commas between members."""
    return {
        (size, frozenset(member.strip() for member in members.split(",")))
        for size, members in groups
    }


def random_scores(groups, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=group.size) for group in groups)


def close(left, right, tolerance=1e-5):
    """Equal to 1e-5 of the largest entry of the tree."""
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    scale = max(np.abs(b).max(initial=0) for _, b in pairs)
    for a, b in pairs:
        assert a.shape == b.shape
        assert np.isfinite(a).all() and np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def measured(fn, params, *inputs):
    """Outputs, and the gradient of their squares, in one quick program."""

    def total(params, *inputs):
        out = fn(params, *inputs)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out)), out

    both = jax.jit(jax.grad(total, has_aux=True), compiler_options=QUICK)
    gradient, out = both(params, *inputs)
    return out, gradient


def check(fn, params, *inputs, groups=None, sparsity=0.5, seed=0, work=True):
    """Masked = shrunk, in value and gradient; parameters and FLOPs fall."""
    found = structured.channel_groups(fn, params, *inputs)
    if groups is not None:
        assert written(found) == groups, f"found:\n{found}"
    assert found, f"nothing can be removed:\n{found}"
    mask = structured.structured_mask(
        random_scores(found, seed), found, params, sparsity
    )
    masked = jax.tree.map(lambda p, m: np.where(m, p, np.zeros_like(p)), params, mask)
    small_fn, small = structured.shrink(fn, params, mask, found)

    report = structured.channel_report(mask, found)
    size = sum(group.size for group in found)
    floors = sum(count.kept == 1 for count in report.groups)
    assert floors or size - report.total.kept == round(sparsity * size)
    kept = sum(int(np.sum(m)) for m in jax.tree.leaves(mask))
    after, before = jp.cost(small_fn, small, *inputs), jp.cost(fn, params, *inputs)
    assert after.params == kept < before.params
    assert not work or after.flops < before.flops

    wanted, gradient = measured(fn, masked, *inputs)
    out, small_gradient = measured(small_fn, small, *inputs)
    if jax.tree.map(np.shape, out) != jax.tree.map(np.shape, wanted):
        wanted = structured.narrow(wanted, mask, found)  # New statistics.
    close(out, wanted)
    close(small_gradient, structured.narrow(gradient, mask, found), 3e-5)
    return found
