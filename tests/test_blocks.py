"""Block masks against NumPy, block by block; the table of masks holds the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.helpers import normal, numpy_global_mask

SHAPES = {"kernel": (3, 2, 4, 6), "matrix": (8, 6), "bias": (6,)}
NAMES = ("kernel", "matrix")  # Leaf order of a dict.


def pooled(leaf, block, reduce):
    """Loops over the blocks of every leading index."""
    leaf = np.asarray(leaf, np.float64)
    rows, columns = leaf.shape[-2] // block[0], leaf.shape[-1] // block[1]
    blocks = np.zeros((*leaf.shape[:-2], rows, columns))
    for index in np.ndindex(blocks.shape):
        *lead, i, j = index
        part = leaf[tuple(lead)][
            i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]
        ]
        blocks[index] = {"sum": np.sum, "max": np.max}[reduce](part)
    return blocks


def spread(blocks, block):
    return np.repeat(np.repeat(blocks, block[0], axis=-2), block[1], axis=-1)


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("block", [(2, 3), (4, 1)])
@pytest.mark.parametrize("ties", [False, True])
def test_keeps_the_blocks_that_a_sort_keeps(scope, reduce, block, ties):
    scores = normal(0, **SHAPES)
    scores = jax.tree.map(jnp.round, scores) if ties else scores
    mask = jp.block_mask(scores, 0.6, block, scope=scope, reduce=reduce)
    blocks = [pooled(scores[name], block, reduce) for name in NAMES]
    if scope == "global":
        removed = round(0.6 * sum(b.size for b in blocks))
        expected = numpy_global_mask(blocks, removed)
    else:
        expected = [numpy_global_mask([b], round(0.6 * b.size))[0] for b in blocks]
    for name, blocks in zip(NAMES, expected, strict=True):
        np.testing.assert_array_equal(mask[name], spread(blocks, block), err_msg=name)
    assert mask["bias"].all()


def test_blocks_of_one_weight_are_weights():
    scores = normal(1, **SHAPES)
    for scope, build in (("global", jp.global_mask), ("layerwise", jp.layerwise_mask)):
        ours = jp.block_mask(scores, 0.7, (1, 1), scope=scope)
        for name, mask in build(scores, 0.7).items():
            np.testing.assert_array_equal(ours[name], mask)


def test_a_sparsity_a_leaf_and_leaves_that_do_not_divide():
    scores = normal(2, **SHAPES)
    mask = jp.block_mask(
        scores,
        {"kernel": 0.25, "matrix": 0.5, "bias": 0.9},
        (4, 6),
        scope="layerwise",
    )
    kept = {name: int(m.sum()) for name, m in mask.items()}
    assert kept == {"kernel": 24 * (6 - 2), "matrix": 24 * 1, "bias": 6}  # 1.5 -> 2.
    divisible = jp.divisible_by((8, 6), axis=(-2, -1))
    mask = jp.block_mask(
        {**scores, "two": scores["matrix"]}, 0.5, (8, 6), prunable=divisible
    )
    assert mask["kernel"].all()
    assert int(mask["matrix"].sum()) == 48 and not mask["two"].any()


def test_half_precision_is_summed_in_float32():
    # In bfloat16 256 + 1 is 256: the blocks would tie, and the first would stay.
    rows = jnp.array([[256.0, 0.0, 0.0, 0.0], [256.0, 1.0, 0.0, 0.0]], jnp.bfloat16)
    mask = jp.block_mask({"w": rows}, 0.5, (1, 4))["w"]
    np.testing.assert_array_equal(mask, [[False] * 4, [True] * 4])


def test_a_prior_of_single_weights_stays_pruned_inside_kept_blocks():
    scores = {"w": jnp.arange(8.0).reshape(2, 4)}
    prior = {"w": jnp.array([[True, False, True, True], [False, False, True, True]])}
    mask = jp.block_mask(scores, 0.5, (1, 2), prior=prior)["w"]
    # The block at the lower left is gone already; of the others the least goes.
    expected = [[False, False, True, True], [False, False, True, True]]
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_what_a_prior_prunes_adds_nothing_to_its_block(reduce):
    scores = {"w": jnp.array([[9.0, 0.0, 3.0, 3.0], [9.0, 0.0, 3.0, 3.0]])}
    prior = {"w": jnp.ones((2, 4), bool).at[:, 0].set(False)}
    mask = jp.block_mask(scores, 0.5, (2, 2), reduce=reduce, prior=prior)["w"]
    np.testing.assert_array_equal(mask, [[False, False, True, True]] * 2)
