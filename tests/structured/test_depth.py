"""Blocks: influence and angular distance against NumPy, and shorter models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune import structured
from tests.structured import llama
from tests.structured.harness import close
from tests.structured.test_activations import check_trains_and_exports

PARAMS, TOKENS = llama.parameters(), llama.batches()
HIDDEN = [PARAMS["embed"][tokens] for tokens in TOKENS]


def cosines(left, right):
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return (left * right).sum(-1) / norms


def test_influence_and_distance_equal_numpy_for_lists_and_stacks():
    reads = [llama.reference(PARAMS, tokens)[1] for tokens in TOKENS]
    states = [[parts[0] for parts in read] for read in reads]  # Before each block.
    influence = [
        1 - np.concatenate([cosines(s[i], s[i + 1]).ravel() for s in states]).mean()
        for i in range(llama.BLOCKS)
    ]
    distance = {
        n: [
            np.arccos(
                np.concatenate([cosines(s[i], s[i + n])[:, -1] for s in states])
            ).mean()
            / np.pi
            for i in range(llama.BLOCKS - n + 1)
        ]
        for n in (1, 2)
    }
    block_fn = jax.jit(llama.block_fn)
    for blocks in (PARAMS["blocks"], llama.stacked(PARAMS["blocks"])):
        found = structured.block_influence(block_fn, blocks, HIDDEN)
        close(found, np.array(influence))
        for n, wanted in distance.items():
            found = structured.angular_distance(block_fn, blocks, HIDDEN, n)
            close(found, np.array(wanted))


def test_the_published_example():
    def block_fn(block, hidden):
        return hidden @ block

    blocks = [jnp.array([[1.0, 1.0], [0.0, 2.0]])]
    found = structured.block_influence(block_fn, blocks, [jnp.eye(2)])
    close(found, np.array([0.14644661]))
    angles = [
        structured.angular_distance(block_fn, blocks, [jnp.eye(2)[i : i + 1]], 1)
        for i in range(2)
    ]
    np.testing.assert_allclose(angles, [[0.25], [0.0]], atol=1e-7)


def test_small_turns_are_not_lost_to_rounding():
    turn = 1e-4
    block = jnp.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    hidden = [jnp.ones((1, 1, 2))]
    found = structured.angular_distance(lambda w, h: h @ w, [block], hidden, 1)
    np.testing.assert_allclose(found, turn / np.pi, rtol=1e-3)
    found = structured.block_influence(lambda w, h: h @ w, [block], hidden)
    np.testing.assert_allclose(found, turn**2 / 2, rtol=2e-3)


def test_a_shorter_llama_runs_exports_and_trains():
    short = {**PARAMS, "blocks": structured.drop_blocks(PARAMS["blocks"], [0])}
    assert short["blocks"][0] is PARAMS["blocks"][1]
    stack = {**short, "blocks": llama.stacked(PARAMS["blocks"])}
    stack["blocks"] = structured.drop_blocks(stack["blocks"], jnp.array([-2]))
    wanted, _ = llama.reference(short, TOKENS[0])
    close(llama.apply_fn(short, TOKENS[0]), wanted)
    close(llama.scan_fn(stack, TOKENS[0]), wanted)
    check_trains_and_exports(llama.scan_fn, stack, TOKENS[0])


def test_modules_of_nnx():
    def make(key):
        return nnx.Linear(3, 3, rngs=nnx.Rngs(key))

    keys = jax.random.split(jax.random.key(0), 4)
    stack = nnx.vmap(make)(keys)
    listed = nnx.List([make(key) for key in keys])
    short, shorter = (structured.drop_blocks(b, [1, 2]) for b in (listed, stack))
    assert isinstance(short, nnx.List) and isinstance(shorter, nnx.Linear)
    assert [short[0], short[1]] == [listed[0], listed[3]]
    for i, block in enumerate(short):
        assert np.array_equal(shorter.kernel[i], block.kernel)
    hidden = [jax.random.normal(jax.random.key(1), (2, 4, 3))]

    def block_fn(block, hidden):
        return block(hidden)

    close(
        structured.block_influence(block_fn, listed, hidden),
        structured.block_influence(block_fn, stack, hidden),
    )


@pytest.mark.parametrize(
    ("drop", "error", "message"),
    [
        ([2], ValueError, "out of 2, from 0 to 1; got .2."),
        ([0, -2], ValueError, "different blocks"),
        ([0, 1], ValueError, "all 2 blocks"),
        ([0.5], TypeError, "indices of blocks"),
        ([True, False], TypeError, "indices of blocks"),
    ],
)
def test_what_cannot_be_dropped(drop, error, message):
    with pytest.raises(error, match=message):
        structured.drop_blocks(PARAMS["blocks"], drop)


def test_what_is_no_stack():
    with pytest.raises(ValueError, match="one leading axis of the same size"):
        structured.drop_blocks({"a": jnp.ones(3), "b": jnp.ones((2, 3))}, [0])
    with pytest.raises(ValueError, match="must keep the shape"):
        structured.block_influence(lambda b, h: h[0], PARAMS["blocks"], HIDDEN)
    with pytest.raises(ValueError, match="no batches"):
        structured.block_influence(llama.block_fn, PARAMS["blocks"], [])
    with pytest.raises(ValueError, match="n=3 blocks does not fit into 2"):
        structured.angular_distance(llama.block_fn, PARAMS["blocks"], HIDDEN, 3)
