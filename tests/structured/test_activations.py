"""Minitron, FLAP and its compensation against NumPy in float64, and smaller models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune import structured
from tests.structured import llama
from tests.structured.harness import close, random_scores

PARAMS, BATCHES = llama.parameters(), llama.batches()
READ = [llama.reference(PARAMS, batch)[1] for batch in BATCHES]


@pytest.fixture(scope="module")
def groups():
    with jax.numpy_rank_promotion("allow"):
        return structured.channel_groups(llama.apply_fn, PARAMS, BATCHES[0])


def named(groups, scores):
    return dict(zip([group.name for group in groups], scores, strict=True))


def query_heads():
    """Declared groups of all blocks: the query heads of each key-value head."""
    return [
        group
        for i in range(llama.BLOCKS)
        for group in structured.slice_groups(
            PARAMS,
            {f"blocks/{i}/q": 1, f"blocks/{i}/o": 0},
            llama.HEADS,
            within=llama.SHARED,
        )
    ]


def seen(block, part):
    """What a part of a block hands on, one array (sequences, tokens, width) a batch."""
    return [read[block][part] for read in READ]


def sizes(arrays):
    """For each input: the sum over sequences of the squared mean of its size."""
    return (np.concatenate([np.abs(x).mean(1) for x in arrays]) ** 2).sum(0)


def variances(arrays):
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in arrays]).var(0)


def numpy64(leaf):
    return np.asarray(leaf, np.float64)


def test_the_reference_is_the_model():
    for batch in BATCHES:
        close(llama.apply_fn(PARAMS, batch), llama.reference(PARAMS, batch)[0])


def test_minitron_equals_numpy(groups):
    found = structured.minitron(llama.apply_fn, PARAMS, BATCHES, groups)
    assert [len(f) for f in found] == [group.size for group in groups]
    found = named(groups, found)
    wanted = np.zeros(llama.WIDTH)
    for i in range(llama.BLOCKS):
        neurons = np.sqrt(sizes(seen(i, 4)))
        close(found[f"blocks/{i}/gate"], neurons)
        heads = np.sqrt(sizes(seen(i, 2)).reshape(llama.SHARED, -1).sum(1))
        close(found[f"blocks/{i}/q"], heads)
        wanted += np.sqrt(sizes(seen(i, 1))) + np.sqrt(sizes(seen(i, 3)))
    wanted += np.sqrt(sizes(seen(-1, 1)))
    close(found["embed"], wanted)  # The residual stream: once a norm.


def test_flap_equals_numpy(groups):
    found = named(groups, structured.flap(llama.apply_fn, PARAMS, BATCHES, groups))
    width = np.zeros(llama.WIDTH)
    for i, block in enumerate(PARAMS["blocks"]):
        squares = {name: (numpy64(w) ** 2).sum(-1) for name, w in block.items()}
        wanted = variances(seen(i, 4)) * squares["down"]
        close(found[f"blocks/{i}/gate"], wanted)
        heads = variances(seen(i, 2)) * squares["o"]
        close(found[f"blocks/{i}/q"], heads.reshape(llama.SHARED, -1).sum(1))
        width += variances(seen(i, 1)) * (squares["q"] + squares["k"] + squares["v"])
        width += variances(seen(i, 3)) * (squares["gate"] + squares["up"])
    width += variances(seen(-1, 1)) * (numpy64(PARAMS["head"]) ** 2).sum(-1)
    close(found["embed"], width)


def test_a_stack_scores_the_sum_of_its_blocks(groups):
    params = {**PARAMS, "blocks": llama.stacked(PARAMS["blocks"])}
    stacks = structured.channel_groups(llama.scan_fn, params, BATCHES[0])
    for method in (structured.minitron, structured.flap):
        listed = named(groups, method(llama.apply_fn, PARAMS, BATCHES[:1], groups))
        found = named(stacks, method(llama.scan_fn, params, BATCHES[:1], stacks))
        for name in ("gate", "q"):
            each = [listed[f"blocks/{i}/{name}"] for i in range(llama.BLOCKS)]
            close(found[f"blocks/{name}"], sum(each))
        close(found["embed"], listed["embed"])


def check_trains_and_exports(fn, params, tokens):
    """A step of Adam lowers the loss; the exported program gives the same logits."""

    def loss_fn(params):
        logits = fn(params, tokens)[:, :-1]
        labels = tokens[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses, trained = tx.init(params), [], params
    for _ in range(3):
        trained, state, loss = step(trained, state)
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2]
    exported = export.deserialize(
        export.export(jax.jit(fn))(params, tokens).serialize()
    )
    close(exported.call(params, tokens), fn(params, tokens))


def test_width_is_removed_in_one_order_of_all_layers(groups):
    neurons = [group for group in groups if group.name.endswith("gate")]
    uneven = jax.tree.map(jnp.array, PARAMS)
    uneven["blocks"][0]["up"] *= 1e-3  # All of one layer's activations are small.
    raw = structured.flap(llama.apply_fn, uneven, BATCHES, neurons)
    mask = structured.structured_mask(raw, neurons, uneven, 0.3)
    first, *_ = structured.channel_report(mask, neurons).groups
    assert first.kept == llama.HIDDEN - 6  # It loses all that are removed.
    even = structured.standardize(raw)
    for before, after in zip(raw, even, strict=True):
        before = numpy64(before)
        close(after, (before - before.mean()) / before.std())
    mask = structured.structured_mask(even, neurons, uneven, 0.3)
    assert structured.channel_report(mask, neurons).groups[0].kept > first.kept + 2
    small_fn, small = structured.shrink(llama.apply_fn, uneven, mask, neurons)
    close(
        small_fn(small, BATCHES[0]),
        llama.reference(jp.apply_mask(uneven, mask), BATCHES[0])[0],
    )
    check_trains_and_exports(small_fn, small, BATCHES[0])


def test_query_heads_are_ranked_within_their_group():
    groups = query_heads()
    scores = structured.minitron(llama.apply_fn, PARAMS, BATCHES, groups)
    each = llama.HEADS // llama.SHARED
    wanted = np.concatenate(
        [
            np.sqrt(sizes(seen(i, 2)).reshape(llama.HEADS, llama.SIZE).sum(1))
            for i in range(llama.BLOCKS)
        ]
    ).reshape(-1, each)
    close(np.stack(scores), wanted)
    mask = structured.structured_mask(scores, groups, PARAMS, 1 / each, scope="group")
    small = structured.narrow(PARAMS, mask, groups)
    for i, block in enumerate(small["blocks"]):
        assert block["q"].shape == (llama.WIDTH, llama.SHARED * llama.SIZE)
        assert block["k"] is PARAMS["blocks"][i]["k"]
    masked = jax.tree.map(jnp.array, PARAMS)
    for i, block in enumerate(masked["blocks"]):
        worst = wanted.reshape(llama.BLOCKS, llama.SHARED, each)[i].argmin(-1)
        for shared, head in enumerate(worst):
            start = (shared * each + head) * llama.SIZE
            block["o"] = block["o"].at[start : start + llama.SIZE].set(0)
    wanted, _ = llama.reference(masked, BATCHES[0])
    close(llama.apply_fn(small, BATCHES[0]), wanted)
    check_trains_and_exports(llama.apply_fn, small, BATCHES[0])


def test_tokens_may_be_merged_with_sequences_or_be_of_another_kind():
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32),
        "v": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(3, 7, 4)), jnp.float32)
    hidden = np.maximum(numpy64(x) @ numpy64(params["w"]), 0)

    def minitron(rearranged):
        def fn(params, batch):
            return jax.nn.relu(rearranged(batch["x"]) @ params["w"]) @ params["v"]

        batch = {"x": x, "y": 1.0}
        groups = structured.channel_groups(fn, params, batch)
        return structured.minitron(fn, params, [batch], groups)[0]

    close(minitron(lambda x: x.reshape(-1, 4)), np.sqrt(sizes([hidden])))
    kept = np.abs(hidden[:2, :5]).mean((0, 1))  # All tokens are one sequence.
    close(minitron(lambda x: x[:2, :5].swapaxes(0, 1)), kept)


def test_a_standardized_group_of_equal_scores_is_zero():
    (found,) = structured.standardize([jnp.full(3, 7.0)])
    assert np.array_equal(found, np.zeros(3))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.LinearGeneral(4, (2, 3), rngs=rngs)
        self.down = nnx.LinearGeneral((2, 3), 5, axis=(-2, -1), rngs=rngs)
        self.out = nnx.Linear(5, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.down(nnx.relu(self.up(x) + 0.5))))


def test_compensation_keeps_the_mean_output():
    graphdef, state = nnx.split(Net(nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    rng = np.random.default_rng(0)
    data = [jnp.asarray(rng.normal(size=(n, 7, 4)), jnp.float32) for n in (3, 2)]

    def fn(params, x):
        return nnx.merge(graphdef, params, copy=True)(x)

    groups = structured.channel_groups(fn, params, data[0])
    group = next(g for g in groups if g.name.startswith("up/kernel") and g.size == 2)
    mask = structured.structured_mask([np.arange(2.0)], [group], params, 0.5)
    found = structured.compensate(fn, params, data, mask, [group])
    x = numpy64(np.concatenate(data)).reshape(-1, 4)
    up, down = (jax.tree.map(numpy64, params[name]) for name in ("up", "down"))
    hidden = np.maximum(np.tensordot(x, up["kernel"], 1) + up["bias"] + 0.5, 0)
    shift = np.tensordot(hidden.mean(0)[:1], down["kernel"][:1], 2)
    close(found["down"]["bias"], down["bias"] + shift)
    found["down"]["bias"] = params["down"]["bias"]
    assert jax.tree.all(jax.tree.map(np.array_equal, found, params))  # The rest stays.
    reader = next(g for g in groups if g.name.startswith("down"))
    mask = structured.structured_mask([np.arange(5.0)], [reader], params, 0.4)
    with pytest.raises(ValueError, match=r"No layer that reads .* has a bias"):
        structured.compensate(fn, params, data, mask, [reader])


def test_compensation_of_a_stack_in_half_precision():
    rng = np.random.default_rng(0)

    def matrix(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    params = {"up": matrix(2, 3, 4), "down": matrix(2, 4, 3), "b": matrix(2, 3)}
    x = matrix(2, 5, 3)

    def body(x, layer):
        hidden = jax.nn.relu(x @ layer["up"])
        return x + hidden @ layer["down"] + layer["b"], hidden

    def fn(params, x):
        return jax.lax.scan(body, x, params)[0]

    (group,) = structured.channel_groups(fn, params, x)
    scores = structured.flap(fn, params, [x], [group])
    assert scores[0].dtype == jnp.float32
    mask = structured.structured_mask([np.arange(4.0)], [group], params, 0.5)
    found = structured.compensate(fn, params, [x], mask, [group])["b"]
    assert found.dtype == jnp.bfloat16
    state, total = x, 0
    for i in range(2):
        layer = {name: leaf[i] for name, leaf in params.items()}
        state, hidden = body(state, layer)
        hidden, down = numpy64(hidden).reshape(-1, 4), numpy64(layer["down"])
        shift = hidden.mean(0)[:2] @ down[:2]
        close(numpy64(found[i]), numpy64(layer["b"]) + shift, 0.01)
        total += hidden.var(0) * (down**2).sum(-1)
    close(scores[0], total, 0.02)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights_and_batches(axis_type):
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in {"w": (4, 8), "v": (8, 4), "b": (1, 1, 4)}.items()
    }
    x = jnp.asarray(rng.normal(size=(4, 5, 4)), jnp.float32)

    def model(matmul):
        def fn(params, x):
            hidden = jax.nn.relu(matmul(x, params["w"], P("data", None, "model")))
            return matmul(hidden, params["v"], P("data")) + params["b"]

        return fn

    def results(fn, params, x):
        return [
            structured.minitron(fn, params, [x], groups),
            structured.flap(fn, params, [x], groups),
            structured.compensate(fn, params, [x], mask, groups),
        ]

    alone = model(lambda x, w, _: x @ w)
    groups = structured.channel_groups(alone, params, x)
    mask = structured.structured_mask(random_scores(groups), groups, params, 0.5)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    specs = {"w": P(None, "model"), "v": P("model"), "b": P()}
    with jax.set_mesh(mesh):
        stated = axis_type == AxisType.Explicit
        fn = model(
            lambda x, w, spec: jnp.matmul(x, w, out_sharding=spec if stated else None)
        )
        place = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        there = jax.device_put(params, place)
        found = results(fn, there, jax.device_put(x, NamedSharding(mesh, P("data"))))
        assert found[-1]["b"].sharding.is_equivalent_to(there["b"].sharding, 3)
    close(jax.tree.map(np.asarray, found), results(alone, params, x))
