"""Rows read, written and sorted at indices: the channels of the rows pass through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import structured
from tests.structured.harness import arrays, check, normal

SOURCES = jnp.array([0, 1, 2, 3, 3, 4])
TARGETS = jnp.array([1, 2, 3, 0, 1, 1])
NODES = 6  # Nothing is sent to the last two.


def norm(h):
    return h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-3)


def segment_mean(messages, targets, size):
    count = jax.ops.segment_sum(jnp.ones_like(targets, jnp.float32), targets, size)
    total = jax.ops.segment_sum(messages, targets, num_segments=size)
    return total / jnp.maximum(count, 1)[:, None]


def segment_max(messages, targets, size):
    found = jax.ops.segment_max(messages, targets, num_segments=size)
    return jnp.where(jnp.isfinite(found), found, 0)


def segment_softmax(messages, targets, size):
    """Attention: one weight for each edge, as in GAT."""
    logits = messages.sum(-1)
    best = jax.ops.segment_max(logits, targets, size)
    weight = jnp.exp(logits - best[targets])
    total = jax.ops.segment_sum(weight, targets, size)
    weight = weight / total[targets]
    return jax.ops.segment_sum(weight[:, None] * messages, targets, size)


def in_a_matrix(messages, targets, size):
    index = jnp.arange(len(targets))
    return jnp.zeros((size, len(targets))).at[targets, index].set(1.0) @ messages


def by_product(messages, targets, size):
    ones, places = jnp.ones((size, messages.shape[-1])), jnp.arange(len(targets))
    return ones.at[places].multiply(1 + messages, unique_indices=True) - 1


AGGREGATIONS = {
    "sum": lambda m, t, n: jax.ops.segment_sum(m, t, num_segments=n),
    "mean": segment_mean,
    "max": segment_max,
    "min": lambda m, t, n: -segment_max(-m, t, n),
    "softmax": segment_softmax,
    "matrix": in_a_matrix,
    "add at": lambda m, t, n: jnp.zeros((n, m.shape[1]), m.dtype).at[t].add(m),
    "subtract at": lambda m, t, n: jnp.zeros((n, m.shape[1])).at[t].subtract(m),
    "set at": lambda m, t, n: jnp.zeros((n, m.shape[1])).at[jnp.arange(len(t))].set(m),
    "product": by_product,
    "batched": lambda m, t, n: jax.vmap(
        lambda m, t: jax.ops.segment_sum(m, t, num_segments=n)
    )(jnp.stack([m, 2 * m]), jnp.stack([t, t])).sum(0),
    "each channel": lambda m, t, n: jax.vmap(
        lambda column: jax.ops.segment_sum(column, t, num_segments=n), 1, 1
    )(m),
}


def test_graph_networks_with_any_aggregation():
    def fn(p, x, sources, targets):
        h = jax.nn.relu(x @ p["in"])
        for aggregate in AGGREGATIONS.values():
            messages = jax.nn.relu(h @ p["message"])[sources]
            h = norm(h + aggregate(messages, targets, NODES) @ p["update"])
        return h @ p["out"]

    params = arrays(
        **{"in": (5, 8), "message": (8, 6), "update": (6, 8), "out": (8, 2)}
    )
    args = normal(NODES, 5), SOURCES, TARGETS
    groups = check(fn, params, *args)
    assert sorted(g.size for g in groups) == [6, 8]
    for name, aggregate in AGGREGATIONS.items():

        def alone(p, x, sources, targets, aggregate=aggregate):
            messages = (x @ p["in"] @ p["message"])[sources]
            return norm(aggregate(messages, targets, NODES)) @ p["update"] @ p["out"]

        found = structured.channel_groups(alone, params, *args)
        assert sorted(g.size for g in found) == [6, 8, 8], name


def dense_experts(p, x, chosen):
    return sum(
        (chosen == e)[:, None] * (jax.nn.silu(x @ p["up"][e]) @ p["down"][e])
        for e in range(3)
    )


def sorted_experts(p, x, chosen):
    order = jnp.argsort(chosen)
    sizes = jnp.bincount(chosen, length=3)
    rows = jax.lax.ragged_dot(x[order], p["up"], sizes)
    rows = jax.lax.ragged_dot(jax.nn.silu(rows), p["down"], sizes)
    return jnp.zeros_like(rows).at[order].set(rows)


def carried_experts(p, x, chosen):
    """Rows carried by a sort of their experts, and carried back."""
    keys = jnp.broadcast_to(chosen[:, None], x.shape)
    places = jnp.broadcast_to(jnp.arange(len(x))[:, None], x.shape)
    _, places, rows = jax.lax.sort((keys, places, x), dimension=0, num_keys=1)
    sizes = jnp.bincount(chosen, length=3)
    rows = jax.lax.ragged_dot(rows, p["up"], sizes)
    rows = jax.lax.ragged_dot(jax.nn.silu(rows), p["down"], sizes)
    return jax.lax.sort((places, rows), dimension=0, num_keys=1)[1]


def bins(p, x, chosen):
    """Tokens written to the bins of their experts; those beyond a bin's size drop."""
    inside = jax.nn.one_hot(chosen, 3, dtype=jnp.int32)
    place = (jnp.cumsum(inside, 0) * inside).sum(-1) - 1
    binned = jnp.zeros((3, 7, x.shape[1])).at[chosen, place].set(x)
    binned = jnp.einsum("ebd,edh->ebh", binned, p["up"])
    binned = jnp.einsum("ebh,ehd->ebd", jax.nn.silu(binned), p["down"])
    return binned.at[chosen, place].get(mode="fill", fill_value=0)


EXPERTS = [sorted_experts, carried_experts, bins]


@pytest.mark.parametrize("experts", EXPERTS)
def test_mixtures_of_experts(experts):
    def net(experts):
        def fn(p, x):
            h = x @ p["in"]
            chosen = jnp.argmax(h @ p["router"], -1)
            return norm(h + experts(p, h, chosen)) @ p["out"]

        return fn

    shapes = {"in": (5, 8), "router": (8, 3), "up": (3, 8, 6), "down": (3, 6, 8)}
    params, x = arrays(**shapes, out=(8, 2)), normal(7, 5)
    np.testing.assert_allclose(
        net(experts)(params, x), net(dense_experts)(params, x), rtol=1e-4, atol=1e-5
    )
    groups = check(net(experts), params, x)
    assert sorted(g.size for g in groups) == [6, 8]


def fourier(h):
    """Mixes tokens, as FNet does, but not channels."""
    return jnp.real(jnp.fft.fft(h, axis=1)) + jnp.fft.irfft(
        jnp.fft.rfft(h, axis=1), 4, 1
    )


def sorted_over_tokens(h):
    return jnp.sort(h, axis=1) + jnp.sort(h, axis=1, descending=True)


def best_tokens(h):
    return jax.lax.top_k(h.swapaxes(1, 2), 2)[0].swapaxes(1, 2)


def best_token_of_each_channel(h):
    index = jnp.argmax(h, axis=1, keepdims=True)
    return jnp.take_along_axis(h, index, axis=1)


def rolled_by_a_traced_amount(h):
    index = (jnp.arange(4) + h.shape[0]) % 4
    return h[:, index]


ALONG_TOKENS = [
    fourier,
    sorted_over_tokens,
    best_tokens,
    best_token_of_each_channel,
    rolled_by_a_traced_amount,
]


def test_operations_along_other_axes():
    def fn(p, x):
        h = x @ p["in"]
        parts = [norm(mix(h)) for mix in ALONG_TOKENS]
        return jnp.concatenate(parts, 1) @ p["out"]

    groups = check(fn, arrays(**{"in": (5, 8), "out": (8, 2)}), normal(2, 4, 5))
    assert [g.size for g in groups] == [8]


def test_a_channel_axis_that_is_written_or_transformed_stays_frozen():
    def written(p, x):
        return (x @ p["in"]).at[:, 2].add(1.0) @ p["out"]

    def updated(p, x):
        return (x @ p["in"]).at[0].apply(lambda h: h + 1) @ p["out"]

    def transformed(p, x):
        return jnp.real(jnp.fft.fft(x @ p["in"])) @ p["out"]

    def ordered(p, x):
        return jnp.sort(x @ p["in"]) @ p["out"]

    params, x = arrays(**{"in": (5, 8), "out": (8, 2)}), normal(4, 5)
    for fn in (written, transformed, ordered):
        assert not structured.channel_groups(fn, params, x)
    assert structured.channel_groups(updated, params, x)
