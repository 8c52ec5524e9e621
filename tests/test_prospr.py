"""ProsPr's memory: what is held for the way back as steps are added."""

import chex
import jax
import jax.numpy as jnp

import jaxprune as jp
from tests.helpers import normal

RATE, WIDTH, EXAMPLES = 0.1, 32, 4096  # A batch weighs 40 times what the weights do.
PARAMS = normal(0, a=(WIDTH, WIDTH), b=(WIDTH, WIDTH), c=(WIDTH, WIDTH))


def _loss(params, x):
    for name in "abc":
        x = jnp.tanh(x @ params[name])
    return jnp.mean(x**2)


def _all_held(params, batches, batch):
    """The score by hand; what a step computes is held for the way back."""

    def step(params, x):
        gradient = jax.grad(_loss)(params, x)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), None

    def trained_loss(params):
        return _loss(jax.lax.scan(step, params, *batches)[0], batch)

    gradient = jax.grad(trained_loss)(params)
    return jax.tree.map(lambda p, g: jnp.abs(p * g), params, gradient)


OURS = jp.prospr(_loss, learning_rate=RATE)


def _temporaries(score, steps):
    x = jax.ShapeDtypeStruct((EXAMPLES, WIDTH), jnp.float32)
    batches = (jax.ShapeDtypeStruct((steps, *x.shape), x.dtype),)
    compiled = jax.jit(score).lower(PARAMS, batches, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_score_is_that_of_holding_everything():
    x = normal(1, x=(4, 16, WIDTH))["x"]
    args = PARAMS, (x[:3],), x[3]
    held = jax.jit(_all_held)(*args)
    chex.assert_trees_all_close(jax.jit(OURS)(*args), held, rtol=1e-4, atol=1e-7)


def test_a_step_adds_the_weights_to_the_memory_and_no_activations():
    ours, held = (
        (_temporaries(score, 8) - _temporaries(score, 2)) / 6
        for score in (OURS, _all_held)
    )
    weights = sum(p.nbytes for p in PARAMS.values())
    activations = len(PARAMS) * EXAMPLES * WIDTH * 4
    assert ours < 2 * weights
    assert held > activations > 50 * ours
