"""What the test files share: small trees, a training loop and a NumPy reference."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax


def normal(seed=0, dtype=jnp.float32, **shapes):
    """A dict of normal arrays: ``normal(w=(4, 3), b=(3,))``."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


# A small tree of weights, and a mask that leaves something in every leaf.
PARAMS = normal(0, kernel=(4, 3), head=(3, 2), bias=(3,))
MASK = {
    "kernel": jnp.arange(12).reshape(4, 3) % 2 == 0,
    "head": jnp.array([[True, False], [False, True], [True, True]]),
    "bias": jnp.array([True, True, False]),
}


def pull(params):
    """The gradient of ``sum((p - 0.5)**2)``: no weight would stay at 0 by itself."""
    return jax.tree.map(lambda p: 2 * p - jnp.ones_like(p), params)


# Compiles in a third of the time: for many programs that run briefly. Every XLA knows
# this option; `tests.flags` adds those that only some know.
QUICK = {"xla_backend_optimization_level": 0}


def training_step(tx, gradient=pull):
    """The four lines of a training step."""

    def step(params, state):
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def jitted(step, compiler_options=QUICK, **options):
    """A jitted function, and a list that grows with every trace of it."""
    traces = []

    def traced(*args):
        traces.append(None)
        return step(*args)

    return jax.jit(traced, compiler_options=compiler_options, **options), traces


def train(tx, params, steps=20, state=None, gradient=pull, **options):
    """Trains in one trace; returns what params and state were after every step."""
    state = tx.init(params) if state is None else state
    step, traces = jitted(training_step(tx, gradient), **options)
    history = []
    for _ in range(steps):
        params, state = step(params, state)
        history.append((params, state))
    assert len(traces) == 1
    return history


def types(tree):
    """The tree of shapes, dtypes, weak types and shardings that ``jit`` keys on."""
    return jax.tree.map(jax.typeof, tree)


def kept(mask):
    """How many weights a mask keeps, over all leaves."""
    return sum(int(np.sum(np.asarray(m))) for m in jax.tree.leaves(mask))


def assert_pruned_are_zero(params, mask):
    """Exactly 0, not nearly, and there is something to look at."""
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True))
    pruned = np.concatenate(
        [np.asarray(p, np.float64)[~np.asarray(m)] for p, m in pairs]
    )
    assert pruned.size
    np.testing.assert_array_equal(pruned, 0.0)


def exact_count(sparsity, size):
    """The number to remove, by exact rationals: half to even, as Python rounds."""
    return round(Fraction(float(sparsity)) * size)


def numpy_global_mask(scores, removed, prior=None):
    """Keeps all but ``removed`` of a list of arrays, by one stable NumPy sort."""
    flat = np.concatenate([np.ravel(np.asarray(s, np.float64)) for s in scores])
    alive = np.ones(flat.size, bool)
    if prior is not None:
        alive = np.concatenate([np.ravel(np.asarray(m)) for m in prior])
    order = sorted(range(flat.size), key=lambda i: (alive[i], flat[i], -i))
    mask = alive.copy()
    mask[order[:removed]] = False
    splits = np.cumsum([np.size(s) for s in scores])[:-1]
    return [
        part.reshape(np.shape(s))
        for part, s in zip(np.split(mask, splits), scores, strict=True)
    ]
