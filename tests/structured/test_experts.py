"""Experts: REAP's scores, and routers that lose the columns of removed experts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from jaxprune import structured
from tests.structured.harness import arrays, close, normal

EXPERTS, TOP = 5, 2


def routed(logits, top):
    """Probabilities renormalized over the best, 0 for the others."""
    best, index = jax.lax.top_k(logits, top)
    chosen = jax.nn.one_hot(index, logits.shape[-1], dtype=logits.dtype)
    return jnp.einsum("...k,...ke->...e", jax.nn.softmax(best), chosen)


def mixture(params, x):
    """The gates and the outputs of all experts, one of which sees each token."""
    gates = routed(x @ params["router"] + params["bias"], TOP)
    hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, params["up"]))
    return gates, jnp.einsum("tef,efd->ted", hidden, params["down"])


def apply_fn(params, x):
    return jnp.einsum("te,ted->td", *mixture(params, x)) @ params["head"]


PARAMS = arrays(
    router=(4, EXPERTS), bias=(EXPERTS,), up=(EXPERTS, 4, 6), down=(EXPERTS, 6, 4)
) | arrays(head=(4, 3))
AXES = {"router": 1, "bias": 0, "up": 0, "down": 0}
X = normal(40, 4)


def test_the_published_example():
    logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0]])
    norms = jnp.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 2.0, 1.0]])
    gates = routed(logits, 2)
    close(structured.reap(gates, norms), np.array([0.634471, 0.756314, 1.462117]))
    whole = jnp.where(gates > 0, jax.nn.softmax(logits), 0)
    close(structured.reap(whole, norms), np.array([0.577349, 0.688222, 1.330482]))


def test_an_expert_without_tokens_scores_zero_and_batches_may_have_any_shape():
    gates = jnp.array([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]]], jnp.bfloat16)
    found = structured.reap(gates, 2 * jnp.ones((2, 1, 3)))
    assert found.dtype == jnp.float32
    assert found.tolist() == [1.5, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"must both be of shape \(..., experts\)"):
        structured.reap(gates, jnp.ones(3))


def test_removed_experts_are_as_if_never_routed_to():
    groups = structured.slice_groups(PARAMS, AXES, EXPERTS)
    gates, outputs = mixture(PARAMS, X)
    scores = structured.reap(gates, jnp.linalg.norm(outputs, axis=-1))
    gates, outputs = np.asarray(gates, np.float64), np.asarray(outputs, np.float64)
    wanted = []
    for expert in range(EXPERTS):
        mine = gates[:, expert] > 0
        added = gates[mine, expert, None] * outputs[mine, expert]
        wanted.append(np.linalg.norm(added, axis=-1).mean())
    close(scores, np.array(wanted))

    mask = structured.structured_mask([scores], groups, PARAMS, 0.4, min_keep=TOP)
    small = structured.narrow(PARAMS, mask, groups)
    gone = np.argsort(wanted)[:2]
    assert small["router"].shape == (4, 3) and small["up"].shape == (3, 4, 6)
    never = PARAMS | {"bias": PARAMS["bias"].at[gone].set(-jnp.inf)}
    close(apply_fn(small, X), apply_fn(never, X))

    tx = optax.adam(1e-2)
    state = structured.narrow(tx.init(PARAMS), mask, groups)

    @jax.jit
    def step(params, state):
        def loss_fn(params):
            return jnp.mean((apply_fn(params, X) - 1) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    trained, losses = small, []
    for _ in range(3):
        trained, state, loss = step(trained, state)
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2]
    exported = export.export(jax.jit(apply_fn))(small, X).serialize()
    close(export.deserialize(exported).call(small, X), apply_fn(small, X))


def test_a_router_keeps_enough_to_choose_from():
    groups = structured.slice_groups(PARAMS, AXES, EXPERTS)
    scores = [np.arange(float(EXPERTS))]
    mask = structured.structured_mask(scores, groups, PARAMS, 0.9, min_keep=TOP)
    small = structured.narrow(PARAMS, mask, groups)
    assert small["router"].shape == (4, TOP)
    assert apply_fn(small, X).shape == (40, 3)
    mask = structured.structured_mask(scores, groups, PARAMS, 0.8)
    with pytest.raises(ValueError, match="k argument to top_k"):
        apply_fn(structured.narrow(PARAMS, mask, groups), X)


@pytest.mark.parametrize(
    ("axes", "size", "within", "message"),
    [
        ({"gate": 0}, 5, 1, "no leaf gate; its leaves are bias, "),
        ({"up": 1}, 5, 1, r"up of shape \(5, 4, 6\) cannot be cut in 5 slices"),
        ({"up": 3}, 5, 1, "cannot be cut"),
        ({"up": 0}, 5, 2, "multiple of within"),
        ({}, 5, 1, "names no leaf"),
    ],
)
def test_slices_that_do_not_exist(axes, size, within, message):
    with pytest.raises(ValueError, match=message):
        structured.slice_groups(PARAMS, axes, size, within=within)
