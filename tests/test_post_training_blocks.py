"""Block by block: a tiny Llama, against a forward pass and solvers in NumPy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.post_training import _layers
from tests import llama, references

METHODS = {"wanda": jp.by_score(jp.wanda), "sparse_gpt": jp.sparse_gpt}


@pytest.fixture(scope="module")
def params():
    return llama.init()


@pytest.fixture(scope="module")
def hidden(params):
    tokens = np.random.default_rng(1).integers(0, llama.VOCABULARY, (2, 8, 6))
    return [params["embed"][batch] for batch in tokens]


@pytest.mark.parametrize("name", METHODS)
def test_a_llama_block_by_block_is_numpys(name, params, hidden):
    """Each block's inputs come from the pruned blocks before it; a stack is a list."""
    method, blocks = METHODS[name], params["blocks"]
    compiled = _layers._pruned._cache_size()
    seen = []
    new, masks = jp.prune_blocks(
        method,
        llama.block_fn,
        blocks,
        hidden,
        n_m=(2, 4),
        on_block=lambda i, block, mask: seen.append((i, block, mask)),
    )
    assert _layers._pruned._cache_size() - compiled <= 6  # Shapes and layouts, once.
    listed = jp.prune_blocks(
        method, llama.block_fn, llama.unstacked(blocks), hidden, n_m=(2, 4)
    )
    assert [i for i, *_ in seen] == [0, 1, 2]
    for i in range(llama.LAYERS):
        for found in (seen[i][1:], (listed[0][i], listed[1][i])):
            jax.tree.map(
                np.testing.assert_array_equal,
                found,
                jax.tree.map(lambda x, i=i: x[i], (new, masks)),
            )
    x = np.concatenate(hidden).astype(float)
    for i, block in enumerate(llama.unstacked(blocks)):
        block = {n: np.array(p, np.float64) for n, p in block.items()}
        _, found = llama.numpy_block(block, x)
        for layer, own in found.items():
            w = llama.as_matrix(layer, block[layer])
            pruned, kept = getattr(references, name)(w, own, n_m=(2, 4))
            np.testing.assert_array_equal(llama.as_matrix(layer, masks[layer][i]), kept)
            actual = llama.as_matrix(layer, new[layer][i])
            np.testing.assert_allclose(actual, pruned, atol=2e-3, err_msg=layer)
            block[layer] = pruned.T.reshape(block[layer].shape)
        x, _ = llama.numpy_block(block, x)
    for scale in llama.SCALES:
        np.testing.assert_array_equal(new[scale], blocks[scale])
        assert masks[scale].all()


def test_the_last_blocks_can_be_pruned_later(params, hidden):
    """The recipe of the docstring; sparsities differ by block; masks stay pruned."""
    blocks, options = llama.unstacked(params["blocks"]), {"sparsity": [0.25, 0.5, 0.75]}
    method, block_fn = METHODS["wanda"], llama.block_fn
    whole, masks = jp.prune_blocks(method, block_fn, blocks, hidden, **options)
    first, _ = jp.prune_blocks(method, block_fn, blocks[:1], hidden, sparsity=[0.25])
    later = [block_fn(first[0], h) for h in hidden]
    rest, _ = jp.prune_blocks(method, block_fn, blocks[1:], later, sparsity=[0.5, 0.75])
    for mask, block, again, s in zip(
        masks, whole, first + rest, (0.25, 0.5, 0.75), strict=True
    ):
        assert {float(1 - mask[n].mean()) for n in llama.SHAPES} == {s}
        for name, leaf in block.items():
            np.testing.assert_array_equal(leaf != 0, again[name] != 0)
    _, more = jp.prune_blocks(
        method, block_fn, blocks, hidden, sparsity=0.75, prior=masks
    )
    for old, new in zip(masks, more, strict=True):
        assert not any(bool((new[n] & ~old[n]).any()) for n in new)
        assert {float(new[n].mean()) for n in llama.SHAPES} == {0.25}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_blocks_and_batches_may_be_sharded(axis_type, params, hidden):
    """Rows over "model", sequences over "data": the statistics are the same sums."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    blocks = {n: params["blocks"][n][:2] for n in ("gate", "up", "down", "norm_mlp")}
    specs = {
        "gate": P(None, None, "model"),
        "up": P(None, None, "model"),
        "down": P(None, "model"),
        "norm_mlp": P(),
    }

    def block_fn(block, x):
        y = llama.rms_norm(x, block["norm_mlp"])
        explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
        kind = {"out_sharding": P("data")} if explicit else {}
        h = jax.nn.silu(y @ block["gate"]) * (y @ block["up"])
        return x + jnp.einsum("btf,fd->btd", h, block["down"], **kind)

    for method in METHODS.values():
        expected = jp.prune_blocks(method, block_fn, blocks, hidden, sparsity=0.5)
        with jax.set_mesh(mesh):
            own = {
                n: jax.device_put(p, NamedSharding(mesh, specs[n]))
                for n, p in blocks.items()
            }
            own_hidden = [
                jax.device_put(h, NamedSharding(mesh, P("data"))) for h in hidden
            ]
            new, masks = jp.prune_blocks(
                method, block_fn, own, own_hidden, sparsity=0.5
            )
        for name in blocks:
            np.testing.assert_array_equal(masks[name], expected[1][name])
            np.testing.assert_allclose(new[name], expected[0][name], atol=1e-3)
            for found in (new, masks):
                assert found[name].sharding.is_equivalent_to(
                    own[name].sharding, own[name].ndim
                )


def fused(block, h):
    """Fused queries, keys and values with one key head; a scale by einsum; biases."""
    y = jnp.einsum("btd,d->btd", h, 1 + block["scale"])
    qkv = y @ block["qkv"] + block["bias"][None, None]
    q, k, v = jnp.split(qkv, [8, 12], axis=-1)
    q = q.reshape(*q.shape[:2], 2, 4) * block["head_scale"][None, None]
    p = jax.nn.softmax(jnp.einsum("bthk,bsk->bhts", q, k), axis=-1)
    mixed = jnp.einsum("bhts,bsk->bthk", p, v).reshape(q.shape[0], q.shape[1], 8)
    return h + mixed @ block["out"]


def test_fused_kernels_in_half_precision(hidden):
    draw = np.random.default_rng(3).normal
    shapes = {
        "qkv": (8, 16),
        "out": (8, 8),
        "bias": (16,),
        "scale": (8,),
        "head_scale": (2, 4),
    }
    block = {n: jnp.asarray(draw(size=s) / 3, jnp.bfloat16) for n, s in shapes.items()}
    states = [h.astype(jnp.bfloat16) for h in hidden]
    for method in METHODS.values():
        everything = jax.tree.map(lambda _: True, block)  # A pattern that is too wide.
        (new,), (mask,) = jp.prune_blocks(
            method, fused, [block], states, sparsity=0.5, prunable=everything
        )
        for name, leaf in new.items():
            share = 0.5 if name in ("qkv", "out") else 1.0
            assert leaf.dtype == jnp.bfloat16 and float(mask[name].mean()) == share
    assert set(
        jp.input_axes(fused, block, states[0], prunable=lambda b: everything)
    ) == {"qkv", "out"}


def test_a_tied_embedding_is_pruned_only_by_name(params):
    tokens = np.arange(12).reshape(2, 6) % llama.VOCABULARY
    method = METHODS["wanda"]
    _, mask = method(llama.apply, params, [tokens], sparsity=0.5)
    assert mask["embed"].all() and mask["norm"].all()
    assert all(float(mask["blocks"][n].mean()) == 0.5 for n in llama.SHAPES)
    assert all(mask["blocks"][n].all() for n in llama.SCALES)
    only = jp.by_path("embed")
    _, mask = method(llama.apply, params, [tokens], sparsity=0.5, prunable=only)
    assert mask["embed"].sum(1).tolist() == [4] * llama.VOCABULARY
    assert mask["blocks"]["up"].all()


ERRORS = {
    "a scale by name": (
        lambda p, h: jp.prune_blocks(
            METHODS["wanda"],
            llama.block_fn,
            p["blocks"],
            h,
            sparsity=0.5,
            prunable=jp.by_path("norm"),
        ),
        r"norm_attention of shape \(8,\).* scale activations or are added",
    ),
    "no blocks": (
        lambda p, h: jp.prune_blocks(jp.admm, llama.block_fn, [], h, sparsity=0.5),
        r"blocks is empty",
    ),
    "no stack": (
        lambda p, h: jp.prune_blocks(jp.admm, llama.block_fn, p, h, sparsity=0.5),
        r"leading axes are \[\(3,\), \(8,\), \(11,\)\]",
    ),
    "sparsities": (
        lambda p, h: jp.prune_blocks(
            jp.admm, llama.block_fn, p["blocks"], h, sparsity=[0.5]
        ),
        r"a list of 1, but there are 3 blocks",
    ),
    "a prior not sliced": (
        lambda p, h: jp.prune_blocks(
            jp.admm,
            llama.block_fn,
            llama.unstacked(p["blocks"])[1:],
            h,
            sparsity=0.5,
            prior=jax.tree.map(lambda x: x != 0, llama.unstacked(p["blocks"])),
        ),
        r"prior has 3 blocks, but there are 2\. To resume, slice it as blocks",
    ),
    "a stack of priors": (
        lambda p, h: jp.prune_blocks(
            jp.admm,
            llama.block_fn,
            p["blocks"],
            h,
            sparsity=0.5,
            prior=jax.tree.map(lambda x: x[:2] != 0, p["blocks"]),
        ),
        r"prior has 2 blocks, but there are 3",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_what_is_wrong(case, params, hidden):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call(params, hidden)


class Block(NamedTuple):
    w: jax.Array
    scale: jax.Array


def test_a_named_tuple_of_stacked_leaves_is_a_stack(hidden):
    stack = Block(jnp.stack([jnp.eye(8) + 0.1, jnp.eye(8) - 0.2]), jnp.ones((2, 8)))
    listed = [Block(*leaves) for leaves in zip(*stack, strict=True)]
    new, listed = (
        jp.prune_blocks(
            METHODS["wanda"],
            lambda b, x: jnp.tanh((x * b.scale[None, None]) @ b.w),
            blocks,
            hidden,
            sparsity=0.5,
        )
        for blocks in (stack, listed)
    )
    assert isinstance(new[0], Block) and isinstance(new[1], Block)
    for i in range(2):
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.tree.map(lambda x, i=i: x[i], new),
            (listed[0][i], listed[1][i]),
        )


def test_errors_name_the_block_and_finished_blocks_are_reported_first(hidden):
    seen = []

    def block_fn(w, x):
        return x @ w / (0.0 if seen else 1.0)  # Infinite once a block is finished.

    with pytest.raises(ValueError, match="NaN or an infinity") as caught:
        jp.prune_blocks(
            METHODS["wanda"],
            block_fn,
            [jnp.eye(8)] * 2,
            hidden,
            sparsity=0.5,
            on_block=lambda i, *_: seen.append(i),
        )
    assert seen == [0] and caught.value.__notes__ == ["This was block 1."]


def test_warnings_name_the_block(hidden):
    blocks = [jnp.eye(8), jnp.zeros((8, 8)), jnp.eye(8)]
    with pytest.warns(UserWarning, match=r"Block 2: The inputs of \['\(root\)'\]"):
        jp.prune_blocks(
            METHODS["wanda"], lambda w, x: x @ w, blocks, hidden, sparsity=0.5
        )
