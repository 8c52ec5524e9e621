"""Pruned weights stay 0 as integers, after training and while it rounds them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.helpers import normal

PARAMS = normal(0, up=(6, 8), down=(8, 4))
X, Y = normal(1, x=(20, 6), y=(20, 4)).values()


def quantize(w):
    """To int8, with a scale for each output channel, as in the how-to."""
    largest = jnp.abs(w).max(-2, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / 127
    return jnp.round(w / scale).astype(jnp.int8), scale


def fake_quantize(w):
    q, scale = quantize(w)
    return w + jax.lax.stop_gradient(q * scale - w)


def loss_fn(params, x, y):
    w = jax.tree.map(fake_quantize, params)
    return jnp.mean((jax.nn.relu(x @ w["up"]) @ w["down"] - y) ** 2)


def pruned(params):
    """A mask that leaves nothing of a whole output channel, and half of the rest."""
    scores = {**params, "up": params["up"].at[:, 3].set(0)}
    return jp.global_mask(jp.magnitude(scores), 0.5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zeros_are_zeros_as_integers(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    mask = pruned(params)
    assert not mask["up"][:, 3].any()
    for w, kept in zip(*map(jax.tree.leaves, (params, mask)), strict=True):
        q, scale = quantize(jnp.where(kept, w, 0))
        assert q.dtype == np.int8 and not q[~kept].any()
        restored = q * scale
        assert np.isfinite(restored).all() and not restored[~kept].any()
        error = np.abs(np.float32(restored) - np.where(kept, np.float32(w), 0))
        assert (error <= 0.51 * np.float32(scale) + 0.01 * np.abs(w)).all()


LINKS = {
    "keep_sparse": lambda mask: jp.keep_sparse(mask),
    "gradual": lambda mask: jp.gradual(0.5, every=2),
}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
def test_the_mask_holds_while_training_rounds_the_weights(link):
    mask = pruned(PARAMS)
    tx = optax.chain(optax.adamw(1e-2, weight_decay=0.1), link(mask))

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params, X, Y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = jp.apply_mask(PARAMS, mask), tx.init(PARAMS), []
    for _ in range(20):
        params, state, loss = step(params, state)
        losses.append(loss)
    assert losses[-1] < 0.9 * losses[2]
    mask = jp.get_mask(state, params)
    assert jp.sparsity(mask) == 0.5
    for w, kept in zip(*map(jax.tree.leaves, (params, mask)), strict=True):
        assert not w[~kept].any() and not quantize(w)[0][~kept].any()


def test_qwix_keeps_zeros_too():
    qwix = pytest.importorskip("qwix")
    mask = pruned(PARAMS)
    for w, kept in zip(*map(jax.tree.leaves, (PARAMS, mask)), strict=True):
        array = qwix.quantize(jnp.where(kept, w, 0), "int8", channelwise_axes=(1,))
        assert not array.qvalue[~kept].any()
        assert not qwix.dequantize(array)[~kept].any()
