"""Masks that move: RigL, SET and GraNet against NumPy, and what a grown weight has."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import (
    MASK,
    PARAMS,
    assert_pruned_are_zero,
    exact_count,
    jitted,
    kept,
    normal,
    numpy_global_mask,
    pull,
    train,
    training_step,
)

SHAPES = {"kernel": (7, 5), "head": (5, 3), "bias": (5,)}
KEY = jax.random.key(11)
COSINE = optax.cosine_decay_schedule(0.6, 24)
CUBIC = optax.polynomial_schedule(0.0, 0.8, power=3, transition_steps=12)

# How a rule is made, and whether it starts from a mask or prunes its own way.
RULES = {
    "rigl": lambda inner, mask, **k: jp.rigl(inner, mask, **k),
    "set_training": lambda inner, mask, **k: jp.set_training(inner, mask, key=KEY, **k),
    "granet": lambda inner, _, **k: jp.granet(inner, CUBIC, **k),
}
each_rule = pytest.mark.parametrize("rule", RULES)


def _best(scores, count, among):
    """The ``count`` best entries of one array, by one NumPy sort."""
    return numpy_global_mask([scores], scores.size - count, [among])[0] & among


def _reference(rule, params, mask, gradients, every, until, fraction):
    """Momentum SGD around a moving mask, in NumPy and float64."""
    names = sorted(params)
    trace = {n: np.zeros(params[n].shape) for n in names}
    shaped = jax.tree.map(jnp.asarray, params)
    params = {n: np.asarray(params[n], np.float64) for n in names}
    mask = {n: np.asarray(mask[n]) for n in names}
    for k, gradient in enumerate(gradients, start=1):
        gradient = {n: np.asarray(gradient[n], np.float64) for n in names}
        new = dict(mask)
        if k % every == 0 and k <= until:
            if rule == "granet":
                matrices = [n for n in names if params[n].ndim >= 2]
                size = sum(params[n].size for n in matrices)
                removed = exact_count(jax.jit(CUBIC)(k), size)
                sizes = [np.abs(params[n]) for n in matrices]
                prior = [mask[n] for n in matrices]
                found = numpy_global_mask(sizes, removed, prior)
                new |= dict(zip(matrices, found, strict=True))
            growth = {n: np.abs(gradient[n]) for n in names}
            if rule == "set_training":
                noise = jp.random(jax.random.fold_in(KEY, k))(shaped)
                growth = {n: np.asarray(noise[n]) for n in names}
            for n in names:
                number = int(new[n].sum())
                moving = exact_count(np.float32(fraction(k)), number)
                moving = min(moving, int((~mask[n]).sum()))
                stay = _best(np.abs(params[n]), number - moving, new[n])
                new[n] = stay | _best(growth[n], moving, ~mask[n])
        for n in names:
            stayed = new[n] & mask[n]
            trace[n] = np.where(new[n] & ~mask[n], 0.0, trace[n])
            trace[n] = 0.9 * trace[n] + np.where(stayed, gradient[n], 0.0)
            params[n] = np.where(stayed, params[n] - 0.1 * trace[n], 0.0)
        mask = new
        yield mask, params, trace


@pytest.mark.parametrize(
    ("fraction", "every"), [(0.4, 2), (COSINE, 3)], ids=["constant", "cosine"]
)
@each_rule
def test_it_is_the_rule_in_numpy(rule, fraction, every):
    params = normal(1, **SHAPES)
    gradients = [normal(k, **SHAPES) for k in range(20, 38)]
    mask = jax.tree.map(lambda p: jnp.ones_like(p, bool), params)
    if rule != "granet":
        mask = jp.layerwise_mask(jp.magnitude(params), 0.6)
    tx = RULES[rule](
        optax.sgd(0.1, momentum=0.9),
        mask,
        every=every,
        until=13,
        drop_fraction=fraction,
    )
    schedule = jax.jit(fraction) if callable(fraction) else lambda _: fraction
    reference = _reference(rule, params, mask, gradients, every, 13, schedule)
    state, (update, traces) = tx.init(params), jitted(tx.update)
    moves = 0
    for k, gradient in enumerate(gradients, start=1):
        before = jp.get_mask(state, params)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        expected_mask, expected, trace = next(reference)
        after = jp.get_mask(state, params)
        chex.assert_trees_all_equal(after, expected_mask)
        chex.assert_trees_all_close(params, expected, atol=1e-5)
        chex.assert_trees_all_close(
            optax.tree.get(state, "trace"), trace, atol=1e-5, rtol=1e-5
        )
        assert_pruned_are_zero(params, expected_mask) if kept(after) < 55 else None
        moved = any(np.any(after[n] != before[n]) for n in after)
        moves += moved
        assert not moved or (k % every == 0 and k <= 13)
    assert moves == 13 // every and len(traces) == 1


@pytest.mark.parametrize("rule", ["rigl", "set_training"])
def test_each_leaf_keeps_its_count_and_moves_what_the_fraction_says(rule):
    start = normal(2, wide=(6, 8), square=(4, 4), dense=(3, 3), bias=(4,))
    mask = {
        "wide": jnp.arange(48).reshape(6, 8) % 4 == 0,  # 12 kept, 36 free.
        "square": jnp.arange(16).reshape(4, 4) != 5,  # 15 kept, 1 free.
        "dense": jnp.ones((3, 3), bool),
        "bias": jnp.array([True, False, True, True]),
    }

    def made(fraction):
        return RULES[rule](
            optax.adam(0.1), mask, every=2, until=None, drop_fraction=fraction
        )

    step, traces = jitted(lambda f, *args: training_step(made(f))(*args))
    for fraction in map(np.float32, (0.0, 0.1, 0.25, 0.5, 0.75, 0.99)):
        params, state, before = start, made(0.5).init(start), mask
        for k in range(1, 9):
            params, state = step(fraction, params, state)
            after = optax.tree.get(state, "mask")
            for n in mask:
                number = int(mask[n].sum())
                free = mask[n].size - number
                moving = min(exact_count(fraction, number), free)
                assert int(after[n].sum()) == number
                grown = int((after[n] & ~before[n]).sum())
                assert grown == (moving if k % 2 == 0 else 0)
            before = after
        assert after["dense"].all()
    assert len(traces) == 1


def test_granet_keeps_what_the_schedule_says_leaf_by_leaf_what_gradual_would():
    params = normal(3, **SHAPES)
    tx = jp.granet(optax.sgd(0.05), CUBIC, every=2, until=None)
    prunable = 35 + 15
    for k, (new, state) in enumerate(train(tx, params, 16), start=1):
        mask = optax.tree.get(state, "mask")
        at = k - k % 2
        removed = exact_count(jax.jit(CUBIC)(at), prunable) if at else 0
        assert kept((mask["kernel"], mask["head"])) == prunable - removed
        assert mask["bias"].all()
        if removed:
            assert_pruned_are_zero(new, mask)


def test_granet_takes_a_choice_of_leaves():
    tx = jp.granet(
        optax.sgd(0.05), 0.5, every=2, until=4, prunable=jp.by_path("kernel")
    )
    _, state = train(tx, PARAMS, 4)[-1]
    mask = optax.tree.get(state, "mask")
    assert kept(mask["kernel"]) == 6
    assert mask["head"].all() and mask["bias"].all()


def test_ties_go_by_index():
    params = {"w": jnp.ones((2, 4))}
    mask = {"w": jnp.array([[True, False, True, False], [True, False, True, False]])}
    tx = jp.rigl(optax.sgd(0.0), mask, every=2, until=2, drop_fraction=0.5)
    state = optax.tree.set(tx.init(params), step=jnp.int32(1))
    _, state = tx.update(params, state, params)
    np.testing.assert_array_equal(
        optax.tree.get(state, "mask")["w"],
        [[True, True, True, True], [False, False, False, False]],
    )


def test_a_weight_that_is_not_a_number_is_the_first_to_go():
    params = {"w": jnp.array([[jnp.nan, 1.0, 2.0, 0.0]])}
    mask = {"w": jnp.array([[True, True, True, False]])}
    tx = jp.rigl(optax.sgd(0.1), mask, every=2, until=2)
    state = optax.tree.set(tx.init(params), step=jnp.int32(1))
    updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
    np.testing.assert_array_equal(
        optax.tree.get(state, "mask")["w"], [[False, True, True, True]]
    )
    assert updates["w"][0, 3] == 0.0


# What a weight has that comes back

INNER = {
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "adagrad": lambda: optax.adagrad(0.05),  # Begins at 0.1.
    "yogi": lambda: optax.yogi(0.05),  # Begins at 1e-6, and decays from there.
    "rprop": lambda: optax.rprop(0.05),  # Begins at the learning rate.
    "dog": lambda: optax.contrib.dog(),  # Keeps the parameters that it began with.
    "prodigy": lambda: optax.contrib.prodigy(),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.05),
    "MultiSteps": lambda: optax.MultiSteps(
        optax.adam(0.05), 3
    ).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.05),
    "zero_nans": lambda: optax.chain(  # A flag a leaf, of no weight.
        optax.zero_nans(), optax.adam(0.05)
    ),
    "masked": lambda: optax.masked(optax.adam(0.05), jp.matrices),
    "masked by subtree": lambda: optax.masked(
        optax.adam(0.05), {"kernel": True, "head": True, "bias": False}
    ),
    "partition": lambda: optax.partition(
        {"a": optax.adam(0.05), "b": optax.sgd(0.05, momentum=0.9)},
        {"kernel": "a", "head": "b", "bias": "b"},
    ),
}


def _param_like(inner, tree):
    """The leaves of a state: whose they are, or "", and their values in NumPy."""
    names = {name: name for name in PARAMS}
    named = optax.tree.map_params(
        inner,
        lambda v, n: v if isinstance(v, optax.MaskedNode) else n,
        tree,
        names,
        transform_non_params=lambda _: "",
        is_leaf=lambda v: isinstance(v, optax.MaskedNode),
    )
    leaves = map(np.asarray, jax.tree.leaves(tree))
    return list(zip(jax.tree.leaves(named), leaves, strict=True))


@pytest.mark.parametrize("name", INNER)
def test_what_grows_gets_the_state_that_init_gives_and_the_rest_steps_on(name):
    inner = INNER[name]()
    rigl = jp.rigl(inner, MASK, every=4, until=None, drop_fraction=0.5)
    sparse = jp.sparse(inner, MASK)
    start = jp.apply_mask(PARAMS, MASK)
    history = train(rigl, start, 4)
    (before, given), (params, state) = history[2:]
    mask = optax.tree.get(state, "mask")
    grown = {n: np.asarray(mask[n] & ~MASK[n]) for n in mask}
    # The fourth step is a sparse one of the weights that stay.
    stay = jax.tree.map(jnp.logical_and, mask, MASK)
    other = jp.set_mask(sparse.init(start), stay)
    other = other._replace(step=given.step, inner_state=given.inner_state)
    expected_params, expected = train(sparse, before, 1, other)[-1]
    chex.assert_trees_all_close(params, expected_params, rtol=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    fresh = inner.init(zeros)
    if name == "yogi":
        _, fresh = inner.update(zeros, fresh, zeros)
    pairs = zip(
        _param_like(inner, state.inner_state),
        _param_like(inner, fresh),
        _param_like(inner, expected.inner_state),
        strict=True,
    )
    for (of, value), (_, begun), (_, stepped) in pairs:
        alike = of and value.shape == grown[of].shape
        new = grown[of] if alike else np.zeros(value.shape, bool)
        np.testing.assert_array_equal(value[new], begun[new])
        np.testing.assert_allclose(value[~new], stepped[~new], rtol=1e-6)
    for of in grown:
        assert grown[of].any()
        np.testing.assert_array_equal(params[of][~stay[of]], 0.0)  # Grown and dropped.


@each_rule
def test_a_grown_weight_trains_from_the_next_update_on(rule):
    tx = RULES[rule](optax.sgd(0.1), MASK, every=4, until=8, drop_fraction=0.5)
    history = train(tx, PARAMS, 9)
    before, after = (jp.get_mask(history[k][1], PARAMS) for k in (6, 7))
    grown = {n: np.asarray(after[n] & ~before[n]) for n in after}
    assert sum(g.sum() for g in grown.values())
    for n in grown:
        np.testing.assert_array_equal(history[7][0][n][grown[n]], 0.0)
        np.testing.assert_allclose(history[8][0][n][grown[n]], 0.1, rtol=1e-6)


@pytest.mark.parametrize("every", [2, 4])
def test_a_leaf_in_which_nothing_grows_leaves_0_on_due_updates_too(every):
    """An accumulator steps on every fourth update, and each of these is due."""
    params = {"w": jnp.array([[1.0, 2.0, 0.0, 0.0]]), "b": jnp.zeros(4)}
    mask = {"w": params["w"] != 0, "b": jnp.ones(4, bool)}
    inner = optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation()
    tx = jp.rigl(inner, mask, every=every, until=None, drop_fraction=0.5)
    params, state = train(
        tx, params, 12, gradient=lambda p: {**p, "b": 1 + 0 * p["b"]}
    )[-1]
    np.testing.assert_allclose(params["b"], -0.3, rtol=1e-6)  # Three steps of 0.1.
    assert int(state.mask["w"].sum()) == 2


def test_every_and_until_may_be_injected():
    def factory(drop_fraction, every, until):
        return jp.rigl(
            optax.sgd(0.1), MASK, every=every, until=until, drop_fraction=drop_fraction
        )

    plain = train(factory(0.3, 4, 9), PARAMS, 8)[-1]
    injected = optax.inject_hyperparams(factory)(drop_fraction=0.3, every=4, until=9)
    params, state = train(injected, PARAMS, 8)[-1]
    chex.assert_trees_all_equal(params, plain[0])
    chex.assert_trees_all_equal(state.inner_state.mask, plain[1].mask)


# When it works


@each_rule
def test_between_due_updates_the_gradients_of_pruned_weights_are_not_read(rule):
    tx = RULES[rule](optax.adam(0.1), MASK, every=4, until=None)
    update, _ = jitted(tx.update)

    def step(params, state, factor=1.0):
        mask = optax.tree.get(state, "mask")
        gradient = jax.tree.map(
            lambda g, m: jnp.where(m, g, factor * g), pull(params), mask
        )
        updates, state = update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    clean = PARAMS, tx.init(PARAMS)
    for _ in range(5):
        clean = step(*clean)
    poisoned = clean
    for _ in range(2):  # Updates 6 and 7.
        clean, poisoned = step(*clean), step(*poisoned, jnp.nan)
    chex.assert_trees_all_equal(
        optax.tree.get(poisoned[1], "mu"), optax.tree.get(clean[1], "mu")
    )
    chex.assert_trees_all_equal(poisoned[0], clean[0])


@each_rule
def test_it_works_on_due_updates_only_also_under_vmap(rule):
    calls = []

    def fraction(step):
        jax.debug.callback(lambda: calls.append(None))
        return jnp.where(step > 0, 0.3, 0.0)

    tx = RULES[rule](optax.sgd(0.1), MASK, every=4, until=None, drop_fraction=fraction)
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), PARAMS)
    state = jax.vmap(tx.init)(params)
    step, _ = jitted(jax.vmap(training_step(tx)))
    seen = []
    for _ in range(8):
        params, state = step(params, state)
        jax.block_until_ready(params)
        jax.effects_barrier()
        seen.append(len(calls))
    once = seen[3]
    assert once >= 1 and seen == [0, 0, 0, once, once, once, once, 2 * once]


def test_the_compiler_moves_no_draw_out_of_a_due_update_under_vmap():
    tx = jp.set_training(
        optax.sgd(0.1), MASK, key=jax.random.key(0), every=4, until=None
    )
    params = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    compiled = jax.jit(jax.vmap(training_step(tx))).lower(
        params, jax.vmap(tx.init)(params)
    )
    computations = re.split(r"\n(?=(?:ENTRY )?%)", compiled.compile().as_text())
    entry = next(text for text in computations if text.startswith("ENTRY"))
    fused = {name for name in re.findall(r"calls=(%[\w.]+)", entry)}
    every_step = [entry] + [c for c in computations if c.split()[0] in fused]
    drawing = re.compile(r" (xor|shift-right-logical|rng-bit-generator)\(")
    assert drawing.search("\n".join(computations))
    assert not drawing.search("\n".join(every_step))


def test_each_lane_may_have_its_own_key():
    def init(key, params):
        return _with(key).init(params)

    def _with(key):
        return jp.set_training(optax.sgd(0.1), MASK, key=key, every=2, until=None)

    keys = jax.random.split(jax.random.key(5), 3)
    params = jax.tree.map(lambda p: jnp.stack([p] * 3), PARAMS)
    state = jax.vmap(init)(keys, params)
    step, _ = jitted(jax.vmap(training_step(_with(KEY))))
    for _ in range(4):
        params, state = step(params, state)
    masks, (single, _) = [], jitted(training_step(_with(KEY)))
    for i, key in enumerate(keys):
        start, alone = PARAMS, _with(key).init(PARAMS)  # The key is in the state.
        for _ in range(4):
            start, alone = single(start, alone)
        lane = jax.tree.map(lambda m, i=i: m[i], optax.tree.get(state, "mask"))
        chex.assert_trees_all_equal(lane, optax.tree.get(alone, "mask"))
        masks.append(np.concatenate([np.ravel(m) for m in jax.tree.leaves(lane)]))
    assert any(np.any(masks[0] != other) for other in masks[1:])


def test_the_drop_fraction_may_be_injected():
    tx = optax.inject_hyperparams(
        lambda drop_fraction: jp.rigl(
            optax.sgd(0.1), MASK, every=2, until=None, drop_fraction=drop_fraction
        )
    )(drop_fraction=0.0)
    step, _ = jitted(training_step(tx))
    params, state = step(*step(PARAMS, tx.init(PARAMS)))
    chex.assert_trees_all_equal(jp.get_mask(state, params), MASK)
    state = optax.tree.set(state, drop_fraction=jnp.float32(0.5))
    params, state = step(*step(params, state))
    mask = jp.get_mask(state, params)
    assert [int((mask[n] & ~MASK[n]).sum()) for n in sorted(mask)] == [1, 2, 3]


def test_a_swapped_mask_is_the_one_that_moves_on():
    tx = jp.rigl(optax.adam(0.1), MASK, every=3, until=None)
    step, _ = jitted(training_step(tx))
    params, state = step(*step(PARAMS, tx.init(PARAMS)))
    other = jax.tree.map(jnp.logical_not, MASK)
    state = jp.set_mask(state, other)
    for _ in range(4):
        params, state = step(params, state)
    mask = jp.get_mask(state, params)
    for n in mask:
        assert int(mask[n].sum()) == int(other[n].sum())
    assert_pruned_are_zero(params, mask)


def test_under_shard_map_each_shard_keeps_its_own_count():
    mesh = jax.make_mesh((4,), ("x",))
    mask = {"w": jnp.arange(32).reshape(8, 4) % 3 == 0}
    tx = jp.rigl(optax.adam(0.1), mask, every=2, until=None, drop_fraction=0.5)
    layout = NamedSharding(mesh, P("x"))
    params = jax.device_put(normal(4, w=(8, 4)), layout)
    state = tx.init(params)
    specs = jax.tree.map(lambda x: P("x") if x.ndim else P(), state)
    parallel = jax.jit(
        jax.shard_map(
            training_step(tx),
            mesh=mesh,
            in_specs=(P("x"), specs),
            out_specs=(P("x"), specs),
        )
    )
    for _ in range(3):  # One move.
        params, state = parallel(params, state)
    after = np.asarray(optax.tree.get(state, "mask")["w"]).reshape(4, 8)
    before = np.asarray(mask["w"]).reshape(4, 8)
    np.testing.assert_array_equal(after.sum(axis=1), before.sum(axis=1))
    assert np.all(np.any(after != before, axis=1))
    assert_pruned_are_zero(params, optax.tree.get(state, "mask"))
